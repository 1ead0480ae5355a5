"""MT-Bench: means by turn and category with intervals, answers with what the judge said of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.core.rows import read_rows
from alignment.pages.blocks import Block, Intervals, Note, Section
from alignment.reporting.exchanges import Row, rated
from alignment.reporting.figures import SHARE, Scale, interval
from alignment.reporting.judging import Report, judge_blocks, verdict_rows

ANSWERS = "answers.jsonl"

_MEANS = {"average": "average", "turn1": "turn 1", "turn2": "turn 2"}
_RATINGS = Scale(1.0, 10.0, 5.5, "1 to 10, the line at the middle", digits=2)


def tell_mt_bench(report: Report, folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """Of `eval mt_bench`."""
    rows, models = verdict_rows(folder), report["models"]
    compares = report.get("grading") == "pair"
    scale = SHARE if compares else _RATINGS
    blocks: list[Block] = []
    for model, means in models.items():
        named = {name: means[name] for name in _MEANS}
        found = [
            interval(_MEANS.get(name, name), mean, report["intervals"][model].get(name), scale)
            for name, mean in {**named, **means["by_category"]}.items()
            if mean is not None
        ]
        blocks.append(Intervals(f"{model}: mean, by turn and by category", found, scale.told))
        silent = [name for name, mean in means["by_category"].items() if mean is None]
        if silent:
            blocks.append(Note(f"Nothing is judged in {', '.join(silent)}.", is_warning=True))
        blocks.append(Note(f"{means['rows']} turns, {means['unjudged']} unjudged."))
    if report.get("official_questions") is False:
        blocks.append(
            Note("The questions are not MT-Bench's: not to be compared with its figures.")
        )
    head = [
        (f"{means['average']:.2f}", f"{model}, average")
        for model, means in models.items()
        if means["average"] is not None
    ]
    yield Section("Evaluation", blocks, head)
    yield Section("Judge", list(judge_blocks(report, [])))
    yield Section("Answers", list(_answers(rows, folder, examples, seed)))


def _answers(rows: Sequence[Row], folder: Path, examples: int, seed: int) -> Iterator[Block]:
    """Some turns with what the judge said of them."""
    if not rows:
        yield Note("The folder has no verdicts to show.")
        return
    answers = {}
    if (folder / ANSWERS).is_file():
        for _, row in read_rows(folder / ANSWERS):
            name = row.get("model") or row.get("model_id")
            answers[str(name), str(row["question_id"])] = row
    drawn = random.Random(seed).sample(rows, min(examples, len(rows)))
    told = f"{len(drawn)} of {len(rows):,} turns, drawn under seed {seed}."
    yield Note(f"{told} A run keeps no questions, only their numbers.")
    yield from rated(drawn, answers)
