from __future__ import annotations

import math

import pytest

from alignment.objectives.conditional import Conditional
from alignment.objectives.span_unlikelihood import SpanUnlikelihood
from alignment.objectives.unlikelihood import Unlikelihood
from tests.objectives.batches import Reply, batch, gradcheck, gradient

TERMS = [Reply([-1.0, -2.0, -0.5], mark=[0, -1, 0])], [Reply([-0.25], mark=[-1])]


def log_complement(x: float) -> float:
    return math.log(1 - math.exp(x))


def test_worked_numbers() -> None:
    """Two tokens elsewhere, 1 + 0.5, and two flagged ones, over four."""
    loss = SpanUnlikelihood(weight=0.5)(batch(*TERMS)).loss().item()
    flagged = log_complement(-2) + log_complement(-0.25)
    assert loss == pytest.approx((1.5 - 0.5 * flagged) / 4)


def test_gradcheck() -> None:
    assert gradcheck(SpanUnlikelihood(weight=0.7), batch(*TERMS))


def test_with_nothing_flagged_it_is_the_likelihood() -> None:
    plain = batch([Reply([-1.0, -2.0])])
    assert SpanUnlikelihood()(plain).loss() == Conditional()(plain).loss()


def test_a_flagged_token_is_one_that_scores_badly() -> None:
    """The same as unlikelihood by score, whose value is held against the authors' numbers."""
    scored = batch([Reply([-1.0, -2.0, -0.5], score=[0, 1, 0])], [Reply([-0.25], score=[1])])
    theirs = Unlikelihood(score_threshold=0.5)
    assert SpanUnlikelihood()(batch(*TERMS)).loss().item() == pytest.approx(
        theirs(scored).loss().item(), rel=1e-12
    )
    assert gradient(SpanUnlikelihood(), batch(*TERMS)) == pytest.approx(gradient(theirs, scored))


def test_a_certain_flagged_token_is_finite() -> None:
    terms = batch([Reply([0.0, -1.0], mark=[-1, 0])])
    assert SpanUnlikelihood()(terms).loss().isfinite()
    assert gradient(SpanUnlikelihood(), terms) == [0.0, -0.5]
