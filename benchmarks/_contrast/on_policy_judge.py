"""On-policy judge: two answers of one policy, ordered by a judge in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks._contrast.case import Case, program
from benchmarks._contrast.policies import JUDGED, SKILL, prompts, share


def _words(folder: Path, count: int, seed: int) -> Sequence[object]:
    source = prompts(folder, count, seed)
    return ("--input", source, "--model", program("policies.policy"), *JUDGED)


CASES = (
    Case(
        "on_policy_judge",
        "both orders",
        _words,
        share(SKILL**2, (1 - SKILL) ** 2),
        "both verdicts are true (0.8 each), or both false; one of each is a tie and dropped, as "
        "are answers both right or both wrong: 0.64 / (0.64 + 0.04)",
    ),
)
