"""Which words of two texts differ."""

from __future__ import annotations

import re
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

_WORD = re.compile(r"\s+|\w+|[^\w\s]")


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
        text: The part.
        differs: Whether the other text has something else in its place, or nothing.
    """

    text: str
    differs: bool


def differing(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Two texts, cut where words that they share border on words that they do not.

    The pieces of a text add up to it. They follow a shortest script that makes one text of the
    other by inserting, deleting and replacing words, punctuation marks and white space.
    """
    one, other = _WORD.findall(first), _WORD.findall(second)
    pieces: tuple[list[Piece], list[Piece]] = [], []
    for edit in Levenshtein.opcodes(one, other):
        differs = edit.tag != "equal"
        parts = one[edit.src_start : edit.src_end], other[edit.dest_start : edit.dest_end]
        for side, part in zip(pieces, parts, strict=True):
            text = "".join(part)
            if side and side[-1].differs == differs:
                side[-1] = Piece(side[-1].text + text, differs)
            elif text:
                side.append(Piece(text, differs))
    return pieces
