"""Triplets of two samples: the better scored against the worse scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.quickstart import world
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.rating import PREDICTED, RIGHT, WHY


def _words(folder: Path, prompts: int, seed: int, *more: object) -> Sequence[object]:
    rows = [
        {"prompt": prompt, "reference": world.accepted(prompt)[0]}
        for prompt in world.prompts("train", prompts, seed)
    ]
    return (
        *("--input", write(folder / "in.jsonl", rows), "--model", program("rating.writer")),
        *("--samples", 2, "--seed", seed, *more),
    )


CASES = (
    Case(
        "triplets",
        "judge",
        lambda *given: _words(*given, "--judge-model", program("rating.judge")),
        PREDICTED,
        WHY,
    ),
    Case(
        "triplets",
        "chrf",
        lambda *given: _words(*given, "--scorer", "chrf"),
        0.5 + RIGHT * (1 - RIGHT),
        "against the right answer as reference a right sample (0.65) always beats a wrong one; "
        "two alike are a tie: 0.5 + 0.65 x 0.35",
    ),
)
