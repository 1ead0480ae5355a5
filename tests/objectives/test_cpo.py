from __future__ import annotations

import math
from typing import Any

import pytest

from alignment.objectives.cpo import CPO
from tests.objectives.batches import batch, chosen, gradcheck, gradient, pair_batch, rejected


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_worked_numbers() -> None:
    """Sums -3 and -5 at beta 0.5: -ls(1); likelihood (1 + 2) / 2 tokens = 1.5, weight 0.4."""
    terms = batch([chosen(-1.0, -2.0), rejected(-5.0)])
    loss = CPO(beta=0.5, cpo_alpha=0.4)(terms).loss().item()
    assert loss == pytest.approx(-log_sigmoid(1) + 0.4 * 1.5)


def test_the_likelihood_is_a_mean_over_the_tokens_of_the_batch() -> None:
    """Chosen tokens -1, -2, -3 and -6: 12 / 4, not the mean of the sequence means 2 and 6."""
    terms = batch([chosen(-1.0, -2.0, -3.0), rejected(-1.0)], [chosen(-6.0), rejected(-1.0)])
    metric = CPO()(terms).metrics["nll_loss"]
    assert (metric.sum / metric.count).item() == 3.0


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        # D = -3 + 5 = 2 for sums, -1.5 + 5 = 3.5 for means
        ({"loss_type": "hinge", "beta": 0.1}, 1 - 0.1 * 2),
        ({"loss_type": "hinge", "beta": 1.0}, 0.0),
        ({"loss_type": "ipo", "beta": 0.25}, (3.5 - 2.0) ** 2),
        ({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}, -log_sigmoid(6.5)),
        (
            {"beta": 0.5, "label_smoothing": 0.1},
            -0.9 * log_sigmoid(1) - 0.1 * log_sigmoid(-1),
        ),
        # f(a) = (1 - e^0.3) / 0.1, f(b) = (1 - e^0.5) / 0.1
        (
            {"beta": 0.5, "alpha": 0.1},
            -log_sigmoid(5 * (math.exp(0.5) - math.exp(0.3))),
        ),
    ],
)
def test_worked_numbers_of_each_preference(kwargs: dict[str, Any], expected: float) -> None:
    """Chosen tokens -1 and -2, rejected token -5, no likelihood."""
    terms = batch([chosen(-1.0, -2.0), rejected(-5.0)])
    assert CPO(cpo_alpha=0.0, **kwargs)(terms).loss().item() == pytest.approx(expected)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "simpo"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, -0.5])
def test_gradcheck(loss_type: Any, alpha: float) -> None:
    terms = batch(
        [chosen(-1.0, -0.5), rejected(-2.0)], [rejected(-0.3, -0.9), chosen(-1.1, -0.2, -0.4)]
    )
    objective = CPO(beta=0.7, loss_type=loss_type, alpha=alpha, label_smoothing=0.1)
    assert gradcheck(objective, terms)


def test_a_small_alpha_approaches_the_plain_log_prob() -> None:
    terms = batch([chosen(-1.0, -0.5), rejected(-2.0)])
    assert CPO(alpha=1e-9)(terms).loss().item() == pytest.approx(CPO()(terms).loss().item())


def test_alpha_stays_finite_where_the_power_of_a_probability_would_not() -> None:
    """exp(-1000) is 0 in float64, but exp(0.01 * 1000) is not infinite: D = 100 (e^10.1 - e^10)."""
    terms = pair_batch([-1000.0], [-1010.0])
    objective = CPO(beta=1e-4, alpha=0.01, cpo_alpha=0.0)
    margin = 0.01 * (math.exp(10.1) - math.exp(10))
    assert objective(terms).loss().item() == pytest.approx(-log_sigmoid(margin))
    assert all(math.isfinite(value) for value in gradient(objective, terms))


def test_hinge_ignores_label_smoothing() -> None:
    terms = pair_batch([-1.0], [-2.0])
    smooth = CPO(loss_type="hinge", label_smoothing=0.2)(terms).loss()
    assert smooth == CPO(loss_type="hinge")(terms).loss()


def test_the_values_of_trl_are_reproduced() -> None:
    """Four pairs from TRL's experimental CPO trainer: sigmoid, beta 0.1, smoothing 0.1."""
    objective = CPO(beta=0.1, label_smoothing=0.1, cpo_alpha=0.0)
    terms = pair_batch(
        [-9.017091241799669, -13.134808973310244, -4.408535706663145, -1.77708451104769],
        [-5.816803632337779, -6.851694172573596, -16.204910119333046, -37.946822080037954],
    )
    output = objective(terms)
    assert output.loss().item() == pytest.approx(0.6502844570414356, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.8339067230998949, 0.9930277236404141, 0.3859966540289024, 0.388206727396531], rel=1e-12
    )
    assert gradient(objective, terms)[::2] == pytest.approx(
        [
            -0.011983281534893496,
            -0.013802662422761127,
            -0.0033779347880797525,
            0.0018459734184228013,
        ],
        rel=1e-12,
    )


def test_the_values_of_trl_with_alpha_are_reproduced() -> None:
    """Three pairs from TRL's experimental CPO trainer: sigmoid, beta 0.1, alpha 0.05."""
    objective = CPO(beta=0.1, alpha=0.05, cpo_alpha=0.0)
    terms = pair_batch(
        [-6.237835389595911, -5.046199062199517, -13.170361358430757],
        [-26.74811928586814, -3.2945060699182984, -4.0183362780128355],
    )
    assert objective(terms).loss().item() == pytest.approx(0.8166465792213703, rel=1e-12)
    assert gradient(objective, terms)[:2] == pytest.approx(
        [-0.00034117595926248703, 0.0009513790357316324], rel=1e-12
    )
