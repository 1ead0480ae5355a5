"""What evaluations with a judge share: who judged, how well, and answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.pages.blocks import Block, Note, Section, Table
from alignment.reporting.exchanges import Row, compared, some_of_each
from alignment.reporting.figures import facts, percent, shown

VERDICTS = "verdicts.jsonl"

Report = Mapping[str, Any]


def matchup(pair: Report) -> str:
    """Which models meet."""
    return f"{pair['model']} against {pair['against']}"


def judge_blocks(report: Report, pairs: Sequence[Report]) -> Iterator[Block]:
    """Who judged, and how often both orders agreed or nothing could be read."""
    judge = report.get("judge")
    if not judge:
        yield Note("The report does not say who judged.")
        return
    yield facts("", [(name.replace("_", " "), value) for name, value in judge.items()])
    rows = [
        [
            matchup(pair) if "against" in pair else "all",
            "" if pair["position_consistency"] is None else percent(pair["position_consistency"]),
            f"{pair['unreadable_verdicts']:,}",
            shown(pair["faults"]),
        ]
        for pair in pairs
        if "position_consistency" in pair
    ]
    if rows:
        head = ["", "both orders agree", "unreadable verdicts", "faults"]
        yield Table("How the judge did", head, rows)


def answers_section(rows: Sequence[Row], examples: int, seed: int) -> Section:
    """Some comparisons side by side, of every outcome."""
    if not rows:
        return Section("Answers", [Note(f"The folder has no {VERDICTS} to show answers from.")])
    chosen = some_of_each(rows, examples, seed)
    told = (
        f"{len(chosen)} of {len(rows):,} comparisons, drawn under seed {seed}: wins, losses, ties."
    )
    blocks = [compared(row, (str(row["model"]), str(row["against"]))) for row in chosen]
    return Section("Answers", [Note(told), *blocks])


def verdict_rows(folder: Path) -> list[Row]:
    """The verdicts that a run keeps in its folder; none where it has none."""
    path = folder / VERDICTS
    return [row for _, row in read_rows(path)] if path.is_file() else []
