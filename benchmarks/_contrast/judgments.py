"""Judgments by a judge that errs: a row counts 1 where its judgment is true, 0 where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.core.groups import Group, text_of
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.fallible import answers, draws

RIGHT = 0.65
"""Share of right answers."""
SKILL = 0.8
"""How often the judge is right."""


def judge(request: Request) -> str:
    """Finds a fault, or none, and is wrong in a share of cases."""
    shown = sections(as_text(request.prompt))
    right = world.is_right(shown["task"], shown["answer"])
    found = right != (draws(request).random() < SKILL)
    return "It is wrong." if found else "FLAWLESS"


def truth(group: Group) -> float:
    """Whether a row with a judgment holds a wrong answer, and one without a right one."""
    answer = text_of(group.responses[0].content)
    judged = len(group.responses) == 2
    return float(judged != world.is_right(as_text(group.prompt).strip(), answer))


def _words(ratio: object, folder: Path, prompts: int, seed: int) -> Sequence[object]:
    source = write(folder / "in.jsonl", answers(prompts, seed, RIGHT, "policy"))
    return (
        *("--input", source, "--judge-model", program("judgments.judge"), "--seed", seed),
        *("--positives-per-negative", ratio),
    )


_FAULTED = (1 - RIGHT) * SKILL + RIGHT * (1 - SKILL)

CASES = (
    Case(
        "judgments",
        "all",
        lambda *given: _words("null", *given),
        SKILL,
        "the judge is right in 0.8, and every row is kept",
        truth,
    ),
    Case(
        "judgments",
        "downsampled",
        lambda *given: _words(0.25, *given),
        ((1 - RIGHT) * SKILL / _FAULTED + 0.25 * RIGHT * SKILL / (1 - _FAULTED)) / 1.25,
        "of 0.41 with a fault found 0.28 have one, of 0.59 without 0.52 have none, and a quarter "
        "as many of these are kept: (0.28 / 0.41 + 0.25 x 0.52 / 0.59) / 1.25",
        truth,
    ),
)
