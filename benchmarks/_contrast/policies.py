"""What the baselines of CLAIR and RLAIF share: a policy, and a judge of two answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.core.groups import Group
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.case import contrast, program, write
from benchmarks._contrast.fallible import answer, draws, preference, task_in

RIGHT = 0.6
"""How often the policy is right."""
SKILL = 0.8
"""How often a verdict is true."""


def policy(request: Request) -> str:
    """A right answer as often as `RIGHT` says."""
    rng = draws(request)
    return answer(task_in(request.prompt), right=rng.random() < RIGHT, rng=rng)


def judge(request: Request) -> str:
    """A verdict on two answers; the errors in both orders are independent."""
    shown = sections(as_text(request.prompt))
    pair = (shown["task"], shown["answer_A"], shown["answer_B"])
    return f"Verdict: {preference(*pair, SKILL, draws(request))}"


def decided(group: Group) -> float | None:
    """As `contrast`, without the pairs whose sides are both right or both wrong."""
    score = contrast(group)
    return None if score == 0.5 else score


def share(won: float, lost: float) -> float:
    """The share of pairs that are won among those that are won or lost."""
    return won / (won + lost)


def prompts(folder: Path, count: int, seed: int) -> Path:
    """A file of prompts."""
    rows = ({"prompt": prompt} for prompt in world.prompts("train", count, seed))
    return write(folder / "in.jsonl", rows)


JUDGED: Sequence[str] = ("--judge-model", program("policies.judge"))
