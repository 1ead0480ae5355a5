from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alignment.objectives.elical import EliCal
from tests.objectives.batches import Reply, batch

# Only the last value of a response counts: 0 is a confidence of 1/2, ln 3 one of 3/4.
GROUPS = (
    [Reply([-1.0, -2.0], values=[9.0, 0.0], reward=1.0)],
    [Reply([-1.0], values=[math.log(3)], reward=0.25)],
)


def test_worked_numbers() -> None:
    """(0.5^2 + 0.5^2) / 2."""
    assert EliCal()(batch(*GROUPS)).loss().item() == pytest.approx(0.25)


def test_gradcheck_of_values() -> None:
    terms = batch(*GROUPS)
    assert terms.values is not None

    def loss(values: Tensor) -> Tensor:
        return EliCal()(replace(terms, values=values)).loss()

    assert torch.autograd.gradcheck(loss, (terms.values.requires_grad_(),))


def test_a_right_confidence_costs_nothing() -> None:
    right = [Reply([-1.0], values=[math.log(3)], reward=0.75)]
    assert EliCal()(batch(right)).loss().item() == pytest.approx(0)


def test_what_the_model_says_plays_no_part() -> None:
    other = [[replace(r, logps=[-5.0] * len(r.logps)) for r in group] for group in GROUPS]
    assert EliCal()(batch(*other)).loss() == EliCal()(batch(*GROUPS)).loss()


def test_a_target_outside_of_its_range_is_named() -> None:
    wrong = [Reply([-1.0], reward=1.5)]
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        EliCal()(batch(wrong))


def test_missing_values_are_named() -> None:
    with pytest.raises(ValueError, match="`values` is missing"):
        EliCal()(replace(batch(*GROUPS), values=None))
