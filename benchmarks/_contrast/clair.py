"""CLAIR with a reviser that sometimes fails: it then gives another answer of the wrong kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.fallible import answer, answers, draws

RIGHT = 0.65
"""Share of right start answers."""
SKILL = 0.8
"""How often the reviser does as it is told."""


def reviser(request: Request) -> str:
    """Mends an answer as little as possible, or fails and gives a wrong one in its place."""
    task, start = _shown(request)
    rng = draws(request)
    if rng.random() < SKILL:
        return f"## Revised answer\n{world.revision(task, start)}"
    return f"## Revised answer\n{answer(task, right=False, rng=rng, unlike=start)}"


def worsener(request: Request) -> str:
    """Gives a wrong answer in the place of any, or fails and gives a right one."""
    task, start = _shown(request)
    rng = draws(request)
    wrong = rng.random() < SKILL
    return f"## Worsened answer\n{answer(task, right=not wrong, rng=rng, unlike=start)}"


def _shown(request: Request) -> tuple[str, str]:
    found = sections(as_text(request.prompt))
    return found["task"], found["answer"]


def _words(direction: str, name: str, folder: Path, prompts: int, seed: int) -> Sequence[object]:
    source = write(folder / "in.jsonl", answers(prompts, seed, RIGHT, "policy"))
    return ("--input", source, "--model", program(f"clair.{name}"), "--direction", direction)


_F, _R = 1 - RIGHT, SKILL

CASES = (
    Case(
        "clair",
        "improve",
        lambda *given: _words("improve", "reviser", *given),
        (_F * _R + _F * (1 - _R) / 2) / (_F + (1 - _F) * (1 - _R)),
        "a wrong start (0.35) is mended (0.8) or stays wrong (a tie); a right one is dropped as "
        "identical (0.8) or spoilt (0): (0.28 + 0.07 / 2) / (0.35 + 0.13)",
    ),
    Case(
        "clair",
        "worsen",
        lambda *given: _words("worsen", "worsener", *given),
        (1 - _F) * _R + ((1 - _F) * (1 - _R) + _F * _R) / 2,
        "a right start (0.65) is spoilt (0.8) or not (a tie); a wrong one stays wrong (0.8, a tie) "
        "or is mended (0): 0.52 + (0.13 + 0.28) / 2",
    ),
)
