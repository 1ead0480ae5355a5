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


def test_simpo_is_cpo_on_means_without_likelihood() -> None:
    terms = batch([chosen(-1.0, -0.5), rejected(-2.0)], [chosen(-0.1), rejected(-2.0, -0.9)])
    settings = CPO(loss_type="simpo", beta=2.5, simpo_gamma=1.375, cpo_alpha=0.0)
    simpo = SimPO(beta=2.5, gamma=1.375)
    assert simpo(terms).loss().item() == pytest.approx(settings(terms).loss().item(), rel=1e-15)
    assert gradient(simpo, terms) == pytest.approx(gradient(settings, terms), rel=1e-15)


def test_repeating_every_token_changes_nothing() -> None:
    once = batch([chosen(-1.0, -0.5), rejected(-2.0)])
    twice = batch([chosen(-1.0, -0.5, -1.0, -0.5), rejected(-2.0, -2.0)])
    assert SimPO()(twice).loss().item() == pytest.approx(SimPO()(once).loss().item(), rel=1e-15)


def test_the_values_of_trl_are_reproduced() -> None:
    """Two pairs from TRL's experimental CPO trainer: simpo, beta 2.5, gamma 1.375, cpo_alpha 0."""
    objective = SimPO(beta=2.5, gamma=1.375)
    terms = pair_batch(
        [-2.584988622504073, -0.3448863930714833], [-0.4401668230141041, -1.639664570977945]
    )
    output = objective(terms)
    assert output.loss().item() == pytest.approx(3.441330316571554, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [6.738239931602322, 0.1444207015407868], rel=1e-12
    )
    assert gradient(objective, terms) == pytest.approx(
        [-1.2485190868382463, 1.2485190868382463, -0.16809556954331575, 0.16809556954331575],
        rel=1e-12,
    )
