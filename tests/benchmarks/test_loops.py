"""Rounds against one round: the arithmetic of the comparison."""

from typing import Any

import pytest

from benchmarks.loops import compare


def results(examples: list[int], score: float, scores: dict[str, float]) -> dict[str, Any]:
    return {"rounds": [{"score": score, "examples": n} for n in examples], "scores": scores}


def test_differences_are_paired_by_prompt_and_pooled_over_seeds():
    """Seed 0: +0.5 and 0 on its two prompts; seed 1: -0.5 on the one both have judged. Mean 0."""
    first = (results([3, 4], 0.7, {"p": 1.0, "q": 0.5}), results([8], 0.6, {"p": 0.5, "q": 0.5}))
    second = (results([5, 5], 0.5, {"p": 0.5, "r": 1.0}), results([9], 0.4, {"p": 1.0}))
    found = compare([first, second])
    assert found["difference"] == pytest.approx(0.0)
    assert found["comparisons"] == 3
    assert (found["online"], found["offline"]) == ([0.7, 0.5], [0.6, 0.4])
    assert (found["examples_online"], found["examples_offline"]) == ([7, 10], [8, 9])
    low, high = found["difference_ci"]
    assert low < 0 < high
