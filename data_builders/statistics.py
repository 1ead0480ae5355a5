"""How far apart the two sides of pairs are, and whether the pairs teach length."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

_TOKEN = re.compile(r"\w+|[^\w\s]")


class PairStatistics(NamedTuple):
    """Means over pairs.

    Attributes:
        pairs: Number of pairs.
        chosen_length: Mean length of the chosen side, characters.
        rejected_length: Mean length of the rejected side, characters.
        length_win_rate: Share of pairs whose chosen side is the longer one, in characters.
        length_ties: Share of pairs with sides of equal length.
        jaccard: Mean overlap of the two token sets; higher is more minimal.
        edit_distance: Mean number of characters to insert, delete or replace; lower is more
            minimal.
        normalised_edit_distance: Mean edit distance over the longer side's length.
    """

    pairs: int
    chosen_length: float
    rejected_length: float
    length_win_rate: float
    length_ties: float
    jaccard: float
    edit_distance: float
    normalised_edit_distance: float


def tokens(text: str) -> set[str]:
    """The words and punctuation marks of a text, as they are written."""
    return set(_TOKEN.findall(text))


def jaccard(first: str, second: str) -> float:
    """|A and B| / |A or B| over the token sets of two texts; 1 for two texts without tokens."""
    one, other = tokens(first), tokens(second)
    return len(one & other) / len(one | other) if one or other else 1.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance in characters."""
    return Levenshtein.distance(first, second)


def normalised_edit_distance(first: str, second: str) -> float:
    """Levenshtein distance over the length of the longer text, in [0, 1]."""
    return Levenshtein.normalized_distance(first, second)


def pair_statistics(pairs: Iterable[tuple[str, str]]) -> PairStatistics:
    """The statistics of (chosen, rejected) texts.

    Raises:
        ValueError: There are no pairs.
    """
    count, totals = 0, [0.0] * (len(PairStatistics._fields) - 1)
    for chosen, rejected in pairs:
        values = (
            len(chosen),
            len(rejected),
            len(chosen) > len(rejected),
            len(chosen) == len(rejected),
            jaccard(chosen, rejected),
            edit_distance(chosen, rejected),
            normalised_edit_distance(chosen, rejected),
        )
        count += 1
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    if not count:
        raise ValueError("statistics need at least one pair")
    return PairStatistics(count, *(total / count for total in totals))
