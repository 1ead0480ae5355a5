"""A writer of answers and a judge that rates them, both of which err."""

from __future__ import annotations

from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.fallible import answer, draws, task_in

RIGHT = 0.65
"""Share of right answers."""
SKILL = 0.8
"""How often a rating is high for a right answer and low for a wrong one."""

_HIGH, _LOW = 5, 1
_RATED_HIGH = RIGHT * SKILL + (1 - RIGHT) * (1 - SKILL)

PREDICTED = 0.5 + (RIGHT * SKILL / _RATED_HIGH - RIGHT * (1 - SKILL) / (1 - _RATED_HIGH)) / 2
WHY = (
    "of 0.59 rated high 0.52 are right, of 0.41 rated low 0.13; equal ratings give no pair: "
    "0.5 + (0.52 / 0.59 - 0.13 / 0.41) / 2"
)


def writer(request: Request) -> str:
    """Answers; two answers to a prompt differ at least in their full stop."""
    rng = draws(request)
    task = task_in(request.prompt)
    text = answer(task, right=rng.random() < RIGHT, rng=rng).removesuffix(".")
    return text + "." * (request.sample % 2)


def judge(request: Request) -> str:
    """Rates each answer that is shown, 5 or 1."""
    shown, rng = sections(as_text(request.prompt)), draws(request)
    task = shown.pop("task")
    blocks = []
    for place, text in enumerate(shown.values(), 1):
        high = world.is_right(task, text) == (rng.random() < SKILL)
        blocks.append(f"Answer {place}\nRating: {_HIGH if high else _LOW}\nRationale: It is so.")
    return "\n".join(blocks)
