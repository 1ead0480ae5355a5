from __future__ import annotations

import math

import pytest

from alignment.objectives.dpo import DPO
from tests.objectives.batches import batch, chosen, gradcheck, gradient, pair_batch, rejected


def test_worked_numbers() -> None:
    """Log-ratios 4 and -2 at beta 0.5: margin 3, loss ln(1 + e^-3), slope -0.5 / (1 + e^3)."""
    terms = batch([chosen(-1.0, -2.0, ref=[-3.0, -4.0]), rejected(-5.0, ref=[-3.0])])
    slope = 0.5 / (1 + math.exp(3))
    assert DPO(beta=0.5)(terms).loss().item() == pytest.approx(math.log1p(math.exp(-3)))
    assert gradient(DPO(beta=0.5), terms) == pytest.approx([-slope, -slope, slope])


def test_gradcheck() -> None:
    terms = batch(
        [chosen(-1.0, -0.5, ref=[-1.5, -0.1]), rejected(-2.0, ref=[-1.0])],
        [rejected(-0.3, -0.9, ref=[-0.4, -2.0]), chosen(-1.1, ref=[-0.6])],
    )
    assert gradcheck(DPO(beta=0.7), terms)


def test_swapping_the_sides_adds_the_margin() -> None:
    """-ls(-m) - (-ls(m)) = m, here 0.1 * ((-20 + 25) - (-30 + 28)) = 0.7."""
    right = pair_batch([-20.0], [-30.0], [-25.0], [-28.0])
    wrong = pair_batch([-30.0], [-20.0], [-28.0], [-25.0])
    difference = DPO()(wrong).loss() - DPO()(right).loss()
    assert difference.item() == pytest.approx(0.7)


def test_a_huge_margin_on_the_wrong_side_stays_finite() -> None:
    terms = pair_batch([-3000.0], [-10.0], [-10.0], [-3000.0])
    assert DPO(beta=1.0)(terms).loss().item() == pytest.approx(5980.0)


def test_the_value_of_trl_is_reproduced() -> None:
    """One pair from TRL's `DPOTrainer` with `loss_type="sigmoid"` and beta 0.1."""
    terms = pair_batch(
        [-26.803516089773353], [-12.993036381674578], [-23.92481336911866], [-17.752395892176846]
    )
    assert DPO(beta=0.1)(terms).loss().item() == pytest.approx(1.1462686311002654, rel=1e-12)
    assert gradient(DPO(beta=0.1), terms) == pytest.approx(
        [-0.06821795349980501, 0.06821795349980501], rel=1e-12
    )
