"""Off-policy judge: answers of four models with rewards that are sometimes wrong, or a judge."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from alignment.quickstart import world
from benchmarks._contrast.case import Case, write
from benchmarks._contrast.fallible import answer
from benchmarks._contrast.policies import JUDGED, RIGHT, SKILL, decided, share

MODELS = 4
TRUE = 0.8
"""How often a reward, 1 for right and 0 for wrong, is true."""


def _words(*more: object) -> Callable[[Path, int, int], Sequence[object]]:
    def words(folder: Path, prompts: int, seed: int) -> Sequence[object]:
        rng = random.Random(f"rewards {seed}")
        rows = []
        for prompt in world.prompts("train", prompts, seed):
            rights = [rng.random() < RIGHT for _ in range(MODELS)]
            rows.append(
                {
                    "prompt": prompt,
                    "responses": [answer(prompt, right=right, rng=rng) for right in rights],
                    "rewards": [float(right == (rng.random() < TRUE)) for right in rights],
                    "models": [f"m{number}" for number in range(MODELS)],
                }
            )
        return ("--input", write(folder / "in.jsonl", rows), *more)

    return words


_REWARDED = share(TRUE**2, (1 - TRUE) ** 2)
_WHY = (
    "a right answer with reward 1 beside a wrong one with 0 (0.8 each), or both rewards false: "
    "0.64 / (0.64 + 0.04)"
)

CASES = (
    Case("off_policy_judge", "two drawn, rewards", _words(), _REWARDED, _WHY, decided),
    Case(
        "off_policy_judge",
        "best and worst, rewards",
        _words("--select", "best_worst"),
        _REWARDED,
        _WHY,
        decided,
    ),
    Case(
        "off_policy_judge",
        "two drawn, judge",
        _words(*JUDGED),
        share(SKILL**2, (1 - SKILL) ** 2),
        "as for `on_policy_judge`",
    ),
)
