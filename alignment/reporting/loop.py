"""A loop: what each round has gained, on how much data, and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.pages.blocks import Block, Intervals, Note, Section, Table
from alignment.reporting.figures import SHARE, Scale, duration, interval
from alignment.reporting.judging import Report

_GAIN = Scale(-0.5, 0.5, 0.0, "-0.5 to 0.5, the line at no gain")


def tell_loop(report: Report, folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """Of `alignment loop`; pairs and answers of a round stand in the folders of its parts."""
    rounds, best = report["rounds"], report["best_round"]
    names = [f"round {row['round']}" for row in rounds]
    scores = [
        interval(name, row["score"], row["score_ci"], SHARE)
        for name, row in zip(names, rounds, strict=True)
    ]
    gains = [
        interval(name, row["gain"], row["gain_ci"], _GAIN)
        for name, row in zip(names, rounds, strict=True)
    ]
    blocks: list[Block] = [
        Intervals("Win rate over the start", scores, SHARE.told),
        Intervals("Gain over the best round before, on the same prompts", gains, _GAIN.told),
        _costs(names, rounds),
    ]
    for name, row in zip(names, rounds, strict=True):
        blocks += [Note(f"{name}: {warning}", is_warning=True) for warning in row["warnings"]]
        blocks.append(Note(f"{name}: answers in `{row['judged']}`, data in `{row['data']}`."))
    if report["stopped"]:
        blocks.append(Note(f"Stopped early: {report['stopped']}."))
    told = f"round {best}" if best else "the start: no round has helped"
    yield Section("Rounds", blocks, [(told, "best"), (f"{len(rounds)}", "rounds")])


def _costs(names: Sequence[str], rounds: Sequence[Report]) -> Table:
    rows = [
        [
            name,
            f"{row['examples']:,}",
            f"{sum(row['dropped'].values()):,}",
            f"{row['cost']['calls']:,}",
            f"{row['cost']['prompt_tokens'] + row['cost']['completion_tokens']:,}",
            f"{row['cost']['dollars']:.2f}",
            duration(row["cost"]["seconds"]),
        ]
        for name, row in zip(names, rounds, strict=True)
    ]
    head = ["", "examples", "dropped", "calls", "tokens", "dollars", "time"]
    return Table("Data and cost", head, rows)
