"""A teacher that is right more often than its student."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.fallible import answer, task_in

TEACHER, STUDENT = 0.9, 0.65
"""Shares of right answers."""


def teacher(request: Request) -> str:
    """Answers with a full stop, which the student never writes."""
    return f"{_answer(request, TEACHER)}."


def student(request: Request) -> str:
    """Answers without a full stop."""
    return _answer(request, STUDENT)


def _answer(request: Request, share_right: float) -> str:
    # Both sides get the same request, and err independently all the same.
    rng = random.Random(f"{share_right} {request.draw()}")
    right = rng.random() < share_right
    return answer(task_in(request.prompt), right=right, rng=rng).removesuffix(".")


def _words(folder: Path, prompts: int, seed: int) -> Sequence[object]:
    rows = [{"prompt": prompt} for prompt in world.prompts("train", prompts, seed)]
    return (
        *("--input", write(folder / "in.jsonl", rows), "--seed", seed),
        *("--model", program("distill_pairs.student")),
        *("--teacher-model", program("distill_pairs.teacher")),
    )


CASES = (
    Case(
        "distill_pairs",
        "drawn",
        _words,
        0.5 + (TEACHER - STUDENT) / 2,
        "the teacher is right in 0.9, the student in 0.65: 0.5 + (0.9 - 0.65) / 2",
    ),
)
