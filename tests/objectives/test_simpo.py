from __future__ import annotations

import math

import pytest

from alignment.objectives.cpo import CPO
from alignment.objectives.simpo import SimPO
from tests.objectives.batches import batch, chosen, gradcheck, gradient, pair_batch, rejected


def test_worked_numbers() -> None:
    """Means -1.5 and -5 at beta 2 and gamma 1: margin 2 * 3.5 - 1 = 6, loss ln(1 + e^-6)."""
    terms = batch([chosen(-1.0, -2.0), rejected(-5.0)])
    assert SimPO()(terms).loss().item() == pytest.approx(math.log1p(math.exp(-6)))


def test_gradcheck() -> None:
    assert gradcheck(SimPO(), batch([chosen(-1.0, -0.5), rejected(-2.0)]))


def test_simpo_is_cpo_without_likelihood_on_means() -> None:
    terms = batch([chosen(-1.0, -0.5), rejected(-2.0)], [chosen(-0.1), rejected(-2.0, -0.9)])
    settings = CPO(loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0)
    assert SimPO()(terms).loss() == settings(terms).loss()


def test_repeating_every_token_changes_nothing() -> None:
    once = batch([chosen(-1.0, -0.5), rejected(-2.0)])
    twice = batch([chosen(-1.0, -0.5, -1.0, -0.5), rejected(-2.0, -2.0)])
    assert SimPO()(twice).loss().item() == pytest.approx(SimPO()(once).loss().item(), rel=1e-15)


def test_the_values_of_trl_are_reproduced() -> None:
    """Three pairs from TRL's experimental CPO trainer: simpo, beta 2, gamma 0.5, alpha 0.25."""
    objective = SimPO(beta=2.0, simpo_gamma=0.5, alpha=0.25)
    terms = pair_batch(
        [-0.47841426111090746, -0.8268505653924836, -0.7853823073916766],
        [-1.3820205114898478, -0.21845564086122993, -0.2805630376780578],
    )
    output = objective(terms)
    assert output.loss().item() == pytest.approx(1.3377685081015809, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.15508650753509534, 2.028931237287429, 1.8292877794822184], rel=1e-12
    )
    assert gradient(objective, terms)[:2] == pytest.approx(
        [-0.10794050938653911, 0.13529827679785592], rel=1e-12
    )
