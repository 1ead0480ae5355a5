"""Context distillation: the positive side alone, which is right or wrong by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.core.groups import Group, text_of
from alignment.llm.prompts import as_text
from alignment.quickstart import world
from benchmarks._contrast.case import Case, program
from benchmarks._contrast.policies import prompts
from benchmarks._contrast.rlcd import POSITIVE


def accuracy(group: Group) -> float:
    """Whether the one response is right, 1 or 0."""
    (response,) = group.responses
    return float(world.is_right(as_text(group.prompt), text_of(response.content)))


def _words(folder: Path, count: int, seed: int) -> Sequence[object]:
    return ("--input", prompts(folder, count, seed), "--model", program("rlcd.base_model"))


CASES = (
    Case(
        "context_distillation",
        "right answers",
        _words,
        POSITIVE,
        "right under the positive description: 0.85",
        accuracy,
    ),
)
