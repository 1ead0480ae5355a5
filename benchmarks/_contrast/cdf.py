"""Critiques, refinements and rivals, given by programs that err."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.fallible import answer, draws, preference, task_in

RIGHT = 0.65
"""Share of right answers of the model."""
SKILL = 0.8
"""How often everything else is right: a critique, a new answer, a rival, a verdict."""


def model(request: Request) -> str:
    """Answers without a full stop; of a review that finds a fault it makes a new answer."""
    shown, rng = sections(as_text(request.prompt)), draws(request)
    if "review" not in shown:
        right = rng.random() < RIGHT
        return answer(task_in(request.prompt), right=right, rng=rng).removesuffix(".")
    if "right" in shown["review"]:
        return f"## Revised answer\n{shown['answer']}"
    return f"## Revised answer\n{_better(shown['task'], rng)}"


def judge(request: Request) -> str:
    """Criticises, refines or prefers, as it is asked to."""
    asked = as_text(request.prompt)
    shown, rng = sections(asked), draws(request)
    if "answer_A" in shown:
        sides = shown["answer_A"], shown["answer_B"]
        return f"Verdict: {preference(shown['task'], *sides, SKILL, rng)}"
    if "## Improved answer" in asked:
        return f"## Improved answer\n{_better(shown['task'], rng)}"
    right = world.is_right(shown["task"], shown["answer"]) == (rng.random() < SKILL)
    return "It is right." if right else "It is false."


def rival(request: Request) -> str:
    """Answers better than the model, and independently of it, whose request is the same."""
    return _better(task_in(request.prompt), random.Random(f"rival {request.draw()}"))


def _better(task: str, rng: random.Random) -> str:
    """An answer with a full stop."""
    right = rng.random() < SKILL
    return f"{answer(task, right=right, rng=rng).removesuffix('.')}."


def _words(feedback: str, folder: Path, prompts: int, seed: int) -> Sequence[object]:
    rows = [{"prompt": prompt} for prompt in world.prompts("train", prompts, seed)]
    return (
        *("--input", write(folder / "in.jsonl", rows), "--model", program("cdf.model")),
        *("--judge-model", program("cdf.judge"), "--second-model", program("cdf.rival")),
        *("--feedback", feedback, "--seed", seed, "--temperature", 1),
    )


_FOUND, _FALSE_ALARM = (1 - RIGHT) * SKILL, RIGHT * (1 - SKILL)

CASES = (
    Case(
        "cdf",
        "critique",
        lambda *given: _words("critique", *given),
        (_FOUND * (1 + SKILL) / 2 + _FALSE_ALARM * SKILL / 2) / (_FOUND + _FALSE_ALARM),
        "an answer without a fault found is repeated and dropped; a fault is found (0.28) and "
        "mended in 0.8, or imagined (0.13) and kept right in 0.8: "
        "(0.28 x 0.9 + 0.13 x 0.4) / 0.41",
    ),
    Case(
        "cdf",
        "refinement",
        lambda *given: _words("refinement", *given),
        0.5 + (SKILL - RIGHT) / 2,
        "the refinement is right in 0.8, the answer in 0.65: 0.5 + (0.8 - 0.65) / 2",
    ),
    Case(
        "cdf",
        "preference",
        lambda *given: _words("preference", *given),
        SKILL**2 / (SKILL**2 + (1 - SKILL) ** 2),
        "both orders agree where both verdicts are true (0.64) or both false (0.04), else there "
        "is no pair: 0.64 / 0.68",
    ),
)
