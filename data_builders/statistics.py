"""What a data set of responses is like: lengths, contrast, ties, and what it says twice."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from alignment.core.groups import (
    CHOSEN,
    REJECTED,
    Group,
    Response,
    RowError,
    binarise,
    group_from_row,
    text_of,
)
from alignment.llm.rows import Row
from data_builders.duplicates import Signature, near_duplicates, signature

_TOKEN = re.compile(r"\w+|[^\w\s]")
_QUANTILES = {
    "min": 0.0,
    "p5": 0.05,
    "p25": 0.25,
    "median": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "max": 1,
}


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

    def __str__(self) -> str:
        """In a line."""
        return (
            f"chosen {self.chosen_length:.0f} characters, rejected {self.rejected_length:.0f}; "
            f"chosen is longer in {self.length_win_rate:.0%}; Jaccard {self.jaccard:.3f}, edit "
            f"distance {self.edit_distance:.0f} "
            f"({self.normalised_edit_distance:.3f} of the longer side)"
        )


class GroupStatistics(NamedTuple):
    """Of scored groups.

    Attributes:
        groups: Number of groups.
        smallest: Fewest responses in a group.
        largest: Most responses in a group.
        reward_gap: Mean of best minus worst reward, over groups with rewards.
        tie_best: Groups in which several responses are best.
        tie_worst: Groups in which several responses are worst.
        no_gap: Groups whose rewards are all equal, which make no pair.
        no_reward: Groups in which a reward is missing.
        repeated: Groups in which two responses are the same text.
    """

    groups: int
    smallest: int
    largest: int
    reward_gap: float | None
    tie_best: int
    tie_worst: int
    no_gap: int
    no_reward: int
    repeated: int


class Statistics(NamedTuple):
    """Of the rows of a data set.

    Attributes:
        rows: Number of rows.
        formats: How many rows are a `pair`, a `group`, a `response`, or `judged`.
        lengths: Prompts and responses by role -> mean and quantiles.
        pairs: Of pairs, and of the best against the worst response of scored groups; None where
            there is neither.
        groups: Of scored groups; None where there are none.
        labels: Responses alone, by what the data says of them: `desirable` and `undesirable`, or
            `judged` and `no_fault`.
        near_duplicates: `prompts` and `responses` (chosen, best or only ones) that nearly repeat
            one of an earlier row.
    """

    rows: int
    formats: dict[str, int]
    lengths: dict[str, dict[str, float]]
    pairs: PairStatistics | None
    groups: GroupStatistics | None
    labels: dict[str, int]
    near_duplicates: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        inner = {"pairs": self.pairs, "groups": self.groups}
        shown = {name: value and value._asdict() for name, value in inner.items()}
        return {**self._asdict(), **shown}


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


class PairTotals:
    """Sums over pairs, one pair at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._totals = [0.0] * (len(PairStatistics._fields) - 1)

    def add(self, chosen: str, rejected: str) -> None:
        """Adds a pair."""
        edits, longer = edit_distance(chosen, rejected), max(len(chosen), len(rejected))
        values = (
            len(chosen),
            len(rejected),
            len(chosen) > len(rejected),
            len(chosen) == len(rejected),
            jaccard(chosen, rejected),
            edits,
            edits / longer if longer else 0.0,
        )
        self.count += 1
        self._totals = [total + value for total, value in zip(self._totals, values, strict=True)]

    def means(self) -> PairStatistics | None:
        """The statistics, None without a pair."""
        if not self.count:
            return None
        return PairStatistics(self.count, *(total / self.count for total in self._totals))


def pair_statistics(pairs: Iterable[tuple[str, str]]) -> PairStatistics:
    """The statistics of (chosen, rejected) texts.

    Raises:
        ValueError: There are no pairs.
    """
    totals = PairTotals()
    for chosen, rejected in pairs:
        totals.add(chosen, rejected)
    means = totals.means()
    if means is None:
        raise ValueError("statistics need at least one pair")
    return means


def quantiles(lengths: array[int]) -> dict[str, float]:
    """Mean and quantiles of lengths, with their number.

    Args:
        lengths: At least one.
    """
    values = np.frombuffer(lengths, dtype=np.int64)
    cuts = np.quantile(values, [*_QUANTILES.values()])
    cut = {name: float(value) for name, value in zip(_QUANTILES, cuts, strict=True)}
    return {"count": len(values), "mean": float(values.mean()), **cut}


def format_of(group: Group) -> str:
    """What a group is: `pair`, `group`, `response`, or `judged`."""
    roles = sorted(response.role for response in group.responses)
    if any(response.twin is not None for response in group.responses):
        return "judged"
    if roles == [REJECTED, CHOSEN]:
        return "pair"
    return "response" if len(roles) == 1 and roles[0] in (CHOSEN, REJECTED) else "group"


def sides(group: Group) -> tuple[Response, Response]:
    """The chosen and the rejected response of a pair."""
    first, second = group.responses
    return (first, second) if first.role == CHOSEN else (second, first)


class Collector:
    """Collects the statistics of a data set, one row at a time.

    Args:
        length: Of a text, in the unit that lengths are told in; characters by default.
        seed: Decides among the best and the worst responses of a group.
    """

    def __init__(self, length: Callable[[str], int] = len, seed: int = 0) -> None:
        self._length = length
        self._seed = seed
        self._formats: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._lengths: dict[str, array[int]] = {}
        self._pairs = PairTotals()
        self._sizes: list[int] = []
        self._gaps: list[float] = []
        self._signatures: dict[str, list[Signature]] = {"prompts": [], "responses": []}

    def add(self, row: Row) -> Group:
        """Adds a row.

        Returns:
            The row as a group.

        Raises:
            RowError: The row is of no known format, and is not counted.
        """
        group = group_from_row(row)
        form = format_of(group)
        prompt = text_of(group.prompt)
        self._formats[form] += 1
        self._measure("prompt", prompt)
        first = getattr(self, f"_add_{form}")(group)
        if "judgment" in row:
            self._labels["judged" if form == "judged" else "no_fault"] += 1
        elif form == "response" and row.get("label") is not None:
            desirable = group.responses[0].role == CHOSEN
            self._labels["desirable" if desirable else "undesirable"] += 1
        self._signatures["prompts"].append(signature(prompt))
        self._signatures["responses"].append(signature(first))
        return group

    def statistics(self) -> Statistics:
        """Of all rows added."""
        groups = None
        if self._sizes:
            groups = GroupStatistics(
                len(self._sizes),
                min(self._sizes),
                max(self._sizes),
                sum(self._gaps) / len(self._gaps) if self._gaps else None,
                *(self._faults[name] for name in GroupStatistics._fields[4:]),
            )
        return Statistics(
            self._formats.total(),
            dict(self._formats.most_common()),
            {name: quantiles(lengths) for name, lengths in self._lengths.items()},
            self._pairs.means(),
            groups,
            dict(self._labels.most_common()),
            {name: near_duplicates(found) for name, found in self._signatures.items()},
        )

    def _measure(self, name: str, text: str) -> None:
        self._lengths.setdefault(name, array("q")).append(self._length(text))

    def _add_pair(self, group: Group) -> str:
        chosen, rejected = (text_of(side.content) for side in sides(group))
        self._measure("chosen", chosen)
        self._measure("rejected", rejected)
        self._pairs.add(chosen, rejected)
        return chosen

    def _add_group(self, group: Group) -> str:
        texts = [text_of(response.content) for response in group.responses]
        for text in texts:
            self._measure("response", text)
        self._sizes.append(len(texts))
        self._faults["repeated"] += len(set(texts)) < len(texts)
        rewards = [response.reward for response in group.responses if response.reward is not None]
        if len(rewards) == len(texts):
            self._gaps.append(max(rewards) - min(rewards))
        try:
            pair, ties = binarise(group, self._seed)
        except RowError as error:
            self._faults[error.reason] += 1
            return texts[0]
        self._faults.update(ties)
        chosen, rejected = (text_of(side.content) for side in sides(pair))
        self._pairs.add(chosen, rejected)
        return chosen

    def _add_response(self, group: Group) -> str:
        text = text_of(group.responses[0].content)
        self._measure("response", text)
        return text

    _add_judged = _add_response
