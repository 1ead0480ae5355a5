from __future__ import annotations

import pytest

from alignment.objectives.conditional import Conditional
from alignment.objectives.span_ascent import SpanAscent
from tests.objectives.batches import Reply, batch, gradcheck, gradient

TERMS = [Reply([-1.0, -2.0, -0.5], mark=[0, -1, 0])], [Reply([-0.25], mark=[-1])]


def test_worked_numbers() -> None:
    """(0.5 * (-2 - 0.25) + 2 * (1 + 0.5)) / 4."""
    loss = SpanAscent(weight=0.5, likelihood_weight=2.0)(batch(*TERMS)).loss().item()
    assert loss == pytest.approx((-1.125 + 3) / 4)


def test_gradcheck() -> None:
    assert gradcheck(SpanAscent(weight=0.7), batch(*TERMS))


def test_with_nothing_flagged_it_is_the_likelihood() -> None:
    plain = batch([Reply([-1.0, -2.0])])
    assert SpanAscent()(plain).loss() == Conditional()(plain).loss()


def test_with_everything_flagged_it_is_the_likelihood_turned_round() -> None:
    flagged = batch([Reply([-1.0, -2.0], mark=[-1, -1])])
    assert SpanAscent()(flagged).loss() == -Conditional()(flagged).loss()


def test_ascent_alone_leaves_the_rest_as_it_is() -> None:
    assert gradient(SpanAscent(likelihood_weight=0.0), batch(*TERMS)) == [0, 0.25, 0, 0.25]
