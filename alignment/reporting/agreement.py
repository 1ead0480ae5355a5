"""Agreement of judges with humans: accuracy with intervals, coefficients, biases, by subset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignment.pages.blocks import Block, Interval, Intervals, Note, Section, Table
from alignment.reporting.figures import SHARE, facts, interval, percent
from alignment.reporting.judging import Report


def tell_agreement(report: Report, folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """Of `eval agreement`; it keeps no answers to show."""
    judges = report["judges"]
    found = [_accuracy(name, made) for name, made in judges.items()]
    measures = {
        "kappa": "Cohen's kappa",
        "ac1": "Gwet's AC1",
        "alpha": "Krippendorff's alpha",
        "macro_f1": "macro F1",
        "position_consistency": "both orders agree",
    }
    table = Table(
        "Agreement with the labels",
        ["", *measures.values(), "length bias"],
        [
            [
                name,
                *(_three(made.get(key)) for key in measures),
                _three((made.get("length_bias") or {}).get("bias")),
            ]
            for name, made in judges.items()
        ],
    )
    blocks: list[Block] = [
        facts(
            "",
            [
                ("pairs", report["rows"]),
                ("without a majority of labels", report["without_majority"]),
                ("Krippendorff's alpha among annotators", report.get("alpha")),
            ],
        ),
        Intervals("Accuracy by the labels of humans", found, SHARE.told),
        table,
    ]
    for versus, kappa in report.get("kappa", {}).items():
        two = versus.replace("_vs_", " and ")
        blocks.append(Note(f"{two}: kappa {kappa:.3f}, AC1 {report['ac1'][versus]:.3f}."))
    head = [(percent(made["accuracy"]), f"accuracy, {name}") for name, made in judges.items()]
    yield Section("Agreement", blocks, head)
    corrected = report.get("corrected")
    if corrected is not None:
        yield Section("Corrected win rate", [facts("", list(corrected.items()))])
    for subset, told in report["subsets"].items():
        rows = [_accuracy(name, made) for name, made in told.items()]
        yield Section(f"Subset {subset}", [Intervals("Accuracy", rows, SHARE.told)])


def _accuracy(name: str, made: Report) -> Interval:
    note = f"{made['n']:,} pairs, {made['unparsed']} unread"
    return interval(name, made["accuracy"], made["accuracy_ci"], SHARE, note)


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
