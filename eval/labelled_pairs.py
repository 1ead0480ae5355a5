"""Pairs of responses with labels of humans and verdicts of judges, read from files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.rows import Row

FIRST, SECOND, TIE = 1, 2, 0
"""Labels: which response is better."""

_LABELS = {"1": FIRST, "2": SECOND, "0": TIE, "a": FIRST, "b": SECOND, "tie": TIE}
_MISSING = ("", "na", "none", "null", "error", "unparsed")
_ANNOTATOR = re.compile(r"annotator_?\d+")
_NAMED = {"label", "majority", "judges", "subset", "output_1", "output_2"}
_TEXTS = {"idx", "i", "cmp_key", "instruction", "prompt", "input", "response1", "response2"}


class Verdicts(NamedTuple):
    """What a judge said of a pair.

    Attributes:
        first: Its verdict with the responses in their order; None where it cannot be read.
        swapped: Its verdict, told for the original order, with the responses swapped.
        both: Whether it was asked in both orders.
    """

    first: int | None
    swapped: int | None = None
    both: bool = False


class LabelledPair(NamedTuple):
    """Two responses that humans and judges have compared.

    Attributes:
        label: Which is better, 1, 2 or 0 for a tie; the majority of several annotators.
        annotators: Annotator -> label; empty where the label alone is known.
        judges: Judge -> verdicts.
        lengths: Characters of both responses, None where they are not in the file.
        subset: Part of the data set.
    """

    label: int
    annotators: Mapping[str, int | None]
    judges: Mapping[str, Verdicts]
    lengths: tuple[int, int] | None
    subset: str | None


def read_pairs(path: str | Path) -> tuple[list[LabelledPair], int]:
    """Reads pairs in the layouts of PandaLM and LLMBar.

    A row has `label`, or `annotator1`, `annotator2`, ..., perhaps with their `majority`; verdicts
    stand in `judges` (name -> label, or name -> `first_order` and `swapped`), or each in a column
    of the judge's name. Labels are 1, 2 and 0 or `tie`; null and `error` are missing.

    Args:
        path: The file.

    Returns:
        The pairs with a label, and the number of rows whose annotators have no majority.

    Raises:
        UserError: A row has no label or another value where one should be, or no judge is there.
    """
    named = list(read_rows(path))
    if not named:
        raise UserError(f"{path}: the file holds no pairs")
    columns = _judge_columns([row for _, row in named])
    pairs, split = [], 0
    for name, row in named:
        try:
            pair = _pair(row, columns)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        if pair is None:
            split += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise UserError(f"{path}: no row has a label that its annotators agree on")
    return pairs, split


def _pair(row: Row, columns: Sequence[str]) -> LabelledPair | None:
    annotators = {
        name: _label(row[name], name) for name in sorted(row) if _ANNOTATOR.fullmatch(name)
    }
    gold = next((name for name in ("label", "majority") if name in row), None)
    if gold is None and not annotators:
        raise ValueError("there is no `label` and no `annotator1`")
    label = _majority([*annotators.values()]) if gold is None else _label(row[gold], gold)
    if label is None:
        return None
    judges = {name: Verdicts(_label(row[name], name)) for name in columns}
    for name, said in row.get("judges", {}).items():
        if isinstance(said, Mapping):
            if not {"first_order", "swapped"} <= said.keys():
                raise ValueError(f"judge `{name}` needs `first_order` and `swapped`")
            first, swapped = (_label(said[order], name) for order in ("first_order", "swapped"))
            judges[name] = Verdicts(first, swapped, both=True)
        else:
            judges[name] = Verdicts(_label(said, name))
    return LabelledPair(label, annotators, judges, _lengths(row), row.get("subset"))


def _lengths(row: Row) -> tuple[int, int] | None:
    for one, two in (("output_1", "output_2"), ("response1", "response2")):
        if isinstance(row.get(one), str) and isinstance(row.get(two), str):
            return len(row[one]), len(row[two])
    return None


def _judge_columns(rows: Sequence[Row]) -> list[str]:
    """The columns that hold labels or nothing, at least one label, and are no one's else."""
    names = {name for row in rows for name in row} - _NAMED - _TEXTS
    candidates = sorted(name for name in names if not _ANNOTATOR.fullmatch(name))
    return [name for name in candidates if _are_labels([row.get(name) for row in rows])]


def _are_labels(values: Sequence[Any]) -> bool:
    try:
        return {_label(value, "") for value in values} != {None}
    except ValueError:
        return False


def _label(value: Any, column: str) -> int | None:
    key = str(value).strip().lower()
    if value is None or key in _MISSING:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or key not in _LABELS:
        raise ValueError(f"`{column}` must be 1, 2, 0, `tie` or null, got `{value}`")
    return _LABELS[key]


def _majority(labels: Sequence[int | None]) -> int | None:
    """The label of more than half of those who gave one."""
    counts = Counter(label for label in labels if label is not None)
    label, most = counts.most_common(1)[0] if counts else (None, 0)
    return label if most > counts.total() / 2 else None
