"""Stronger preferred: a policy's answers against those of a model that is right more often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.llm.protocol import Request
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.fallible import answer, answers, draws, task_in
from benchmarks._contrast.policies import decided, share

OWN, STRONGER = 0.6, 0.9
"""How often each is right."""


def stronger(request: Request) -> str:
    """A right answer as often as `STRONGER` says."""
    rng = draws(request)
    return answer(task_in(request.prompt), right=rng.random() < STRONGER, rng=rng)


def _words(folder: Path, prompts: int, seed: int) -> Sequence[object]:
    source = write(folder / "in.jsonl", answers(prompts, seed, OWN, "policy"))
    return ("--input", source, "--model", program("stronger_preferred.stronger"))


CASES = (
    Case(
        "stronger_preferred",
        "decided pairs",
        _words,
        share(STRONGER * (1 - OWN), (1 - STRONGER) * OWN),
        "the stronger is right (0.9) and the policy wrong (0.4), or the reverse: "
        "0.36 / (0.36 + 0.06)",
        decided,
    ),
)
