from __future__ import annotations

import pytest

from alignment.objectives.conditional import Conditional
from tests.objectives.batches import Reply, batch, gradcheck, gradient

TERMS = [Reply([-1.0, -2.0, -3.0])], [Reply([-6.0], role=-1)]


def test_worked_numbers() -> None:
    """12 nats over 4 tokens, whatever response they belong to and whatever its role."""
    assert Conditional()(batch(*TERMS)).loss().item() == 3.0


def test_gradcheck() -> None:
    assert gradcheck(Conditional(), batch(*TERMS))


def test_the_order_of_responses_does_not_matter() -> None:
    assert Conditional()(batch(*TERMS)).loss() == Conditional()(batch(*TERMS[::-1])).loss()


def test_the_gradient_of_the_authors_likelihood_is_the_same_for_every_token() -> None:
    """Their `mle` is the mean of -x over all tokens: -1/4 for each."""
    assert gradient(Conditional(), batch(*TERMS)) == pytest.approx([-0.25] * 4)
