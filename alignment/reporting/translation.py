"""Translations against references: each metric by direction with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.pages.blocks import Block, Intervals, Note, Section, Table
from alignment.reporting.figures import Scale, interval
from alignment.reporting.judging import Report

_DIGITS = {"BLEU": 2, "chrF2": 2}
"""Decimals of metrics that run to 100; others run to about 1."""


def tell_translation(report: Report, folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """Of `eval translation`; it keeps no answers to show."""
    directions = report["directions"]
    if len(directions) > 1:
        yield Section("Means over directions", [_means(report["average"])])
    for direction, part in directions.items():
        blocks: list[Block] = [Note(f"{part['n']:,} segments.")]
        for metric, told in part["metrics"].items():
            blocks.append(_of_metric(metric, told["systems"]))
            blocks.append(Note(f"Signature: `{told['signature']}`."))
        yield Section(direction or "Evaluation", blocks)


def _means(average: Mapping[str, Mapping[str, float]]) -> Table:
    systems = list(next(iter(average.values())))
    rows = [
        [name, *(f"{scores[name]:.{_digits(metric)}f}" for metric, scores in average.items())]
        for name in systems
    ]
    return Table("Mean of the scores of all directions", ["", *average], rows)


def _of_metric(metric: str, systems: Mapping[str, Mapping[str, Any]]) -> Intervals:
    """All systems on a scale of their own, the first of which the others are tested against."""
    ends = [end for own in systems.values() for end in own["ci"]]
    first = next(iter(systems.values()))["score"]
    scale = Scale(min(ends), max(ends), first, "the line at the first", _digits(metric))
    rows = [
        interval(name, own["score"], own["ci"], scale, _test(own)) for name, own in systems.items()
    ]
    return Intervals(metric, rows, scale.told)


def _test(own: Mapping[str, Any]) -> str:
    """What the paired bootstrap says; nothing of the first, and where nothing was tested."""
    return f"p = {own['p_value']:.4f}" if "p_value" in own else ""


def _digits(metric: str) -> int:
    return _DIGITS.get(metric, 4)
