from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from alignment.objectives.conditional import Conditional
from alignment.objectives.unlikelihood import Unlikelihood
from tests.objectives.batches import Reply, batch, gradcheck, gradient

TERMS = [Reply([-1.0, -2.0, -0.5], score=[0.1, 0.5, 0.6])]


def log_complement(x: float) -> float:
    return math.log(1 - math.exp(x))


def test_worked_numbers() -> None:
    """Scores up to 0.5 are learnt: (1 + 2 - 0.7 log(1 - e^-0.5)) / 3."""
    loss = Unlikelihood(alpha=0.7, score_threshold=0.5)(batch(TERMS)).loss().item()
    assert loss == pytest.approx((3 - 0.7 * log_complement(-0.5)) / 3)


def test_worked_numbers_of_the_mixture() -> None:
    """Likelihood weights 0.9, 0.5 and 0.4."""
    loss = Unlikelihood(weighting="mixture")(batch(TERMS)).loss().item()
    likelihood = 0.9 * 1 + 0.5 * 2 + 0.4 * 0.5
    rest = 0.1 * log_complement(-1) + 0.5 * log_complement(-2) + 0.6 * log_complement(-0.5)
    assert loss == pytest.approx((likelihood - rest) / 3)


@pytest.mark.parametrize("weighting", ["threshold", "mixture"])
def test_gradcheck(weighting: str) -> None:
    objective = Unlikelihood(0.7, 0.5, weighting)  # type: ignore[arg-type]
    assert gradcheck(objective, batch(TERMS, [Reply([-0.2], score=[0.9])]))


def test_where_everything_scores_well_it_is_the_likelihood() -> None:
    loss = Unlikelihood(score_threshold=1.0)(batch(TERMS)).loss()
    assert loss == Conditional()(batch(TERMS)).loss()


def test_a_certain_token_is_finite_and_has_no_gradient() -> None:
    terms = batch([Reply([0.0, -1.0], score=[1.0, 0.0])])
    objective = Unlikelihood(score_threshold=0.5)
    assert objective(terms).loss().item() == pytest.approx((1 - math.log(1e-20)) / 2)
    assert gradient(objective, terms) == [0.0, -0.5]


def test_a_score_that_is_no_number_is_named() -> None:
    terms = replace(batch(TERMS), score=torch.tensor([0.0, math.nan, 0.0]))
    with pytest.raises(ValueError, match="`score` holds NaN"):
        Unlikelihood()(terms)


def test_the_values_of_the_authors_code_are_reproduced() -> None:
    """Their tokens at threshold 0.5 and alpha 0.7."""
    logps = [
        -0.44829723276393146,
        -0.7591961991211789,
        -0.8564927407876046,
        -1.397725032681987,
        -1.193121017082266,
        -0.10041828950383357,
        -0.511191876453362,
        -1.1664808496557761,
        -0.03901309791447308,
        -1.5217650393565,
        -3.5212461596256714,
        -0.16956415489302767,
    ]
    scores = [
        0.8956458092064875,
        0.9250348943505187,
        0.8372347457383909,
        0.5048318779610947,
        0.747447307272934,
        0.9167899982501434,
        0.8427034489114064,
        0.35557505977227055,
        0.574507084828741,
        0.8604456688127328,
        0.5916043899061214,
        0.09834316016655897,
    ]
    terms = batch([Reply(logps, score=scores)])
    objective = Unlikelihood(alpha=0.7, score_threshold=0.5)
    assert objective(terms).loss().item() == pytest.approx(0.6743053934488065, rel=1e-12)
    assert gradient(objective, terms) == pytest.approx(
        [
            0.1031272932346404,
            0.05132454743103286,
            0.043054021175412696,
            0.01915089313701056,
            0.02539150505125374,
            0.5522248708461506,
            0.08741994086927604,
            -0.08333333333333334,
            1.4662473091903967,
            0.0162928505840956,
            0.0017770165784693533,
            -0.08333333333333333,
        ],
        rel=1e-9,
    )
