"""Which tokens an edit of a response inserts, replaces or deletes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from alignment.core.packing import TokenGroup


class Edit(NamedTuple):
    """One edit of a token.

    Attributes:
        kind: `insert`, `delete` or `replace`.
        original: Place in the original.
        revised: Place in the revision.
    """

    kind: str
    original: int
    revised: int


def shortest_edits(original: Sequence[int], revised: Sequence[int]) -> list[Edit]:
    """A shortest script that turns one list of ids into another; of several, the library's."""
    return [Edit(*edit) for edit in Levenshtein.editops(original, revised)]


def edit_marks(
    original: Sequence[int], revised: Sequence[int], end_tokens: Collection[int]
) -> tuple[list[int], list[int]]:
    """Marks of the tokens that a shortest edit script touches, as FIGA's release sets them.

    Args:
        original: Ids of the answer before the edit.
        revised: Ids of the answer after it.
        end_tokens: Ids that end a response; the first of each side is marked +1.

    Returns:
        The original's marks, -1 where a token is deleted or replaced, and the revision's, +1 where
        one is inserted or replaces another; 0 elsewhere.
    """
    marks = [0] * len(original), [0] * len(revised)
    for edit in shortest_edits(original, revised):
        if edit.kind != "insert":
            marks[0][edit.original] = -1
        if edit.kind != "delete":
            marks[1][edit.revised] = 1
    for ids, side in zip((original, revised), marks, strict=True):
        end = next((index for index, token in enumerate(ids) if token in end_tokens), None)
        if end is not None:
            side[end] = 1
    return marks


def mark_edits(group: TokenGroup, end_tokens: Collection[int]) -> TokenGroup:
    """A pair with the marks of what leads from its rejected to its chosen response."""
    sides = list(group.role)
    original, revised = sides.index(-1), sides.index(1)
    marks: list[list[int]] = [[], []]
    marks[original], marks[revised] = edit_marks(
        group.responses[original], group.responses[revised], end_tokens
    )
    return replace(group, mark=marks)
