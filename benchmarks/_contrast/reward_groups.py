"""Scored groups of two answers: the better rated against the worse rated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.quickstart import world
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.rating import PREDICTED, WHY


def _words(folder: Path, prompts: int, seed: int, *more: object) -> Sequence[object]:
    rows = [{"prompt": prompt} for prompt in world.prompts("train", prompts, seed)]
    return (
        *("--input", write(folder / "in.jsonl", rows), "--model", program("rating.writer")),
        *("--judge-model", program("rating.judge"), "--aspects", "code", "--answers", 2),
        *("--principles", "false", "--seed", seed, *more),
    )


CASES = (
    Case("reward_groups", "groups", _words, PREDICTED, WHY),
    Case(
        "reward_groups",
        "pairs",
        lambda *given: _words(*given, "--pairs", "best_worst"),
        PREDICTED,
        "the same, paired by the builder",
    ),
)
