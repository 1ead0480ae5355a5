"""Panacea's loss: a DPO per dimension, weighed by the preference of the step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from alignment.objectives.base import Progress
from alignment.objectives.dpo import DPO
from alignment.objectives.panacea import Panacea
from tests.objectives.batches import Reply, batch, gradcheck, pair_batch

EVENLY = Progress(evaluating=True)


def test_the_dimensions_of_a_group_are_added_up_by_preference():
    """beta 1, evaluated evenly. Log-ratios 0.5, 0, -0.5. Dimension 0 prefers the first to the last:
    margin 1, -log sigmoid(1) = 0.313262. Dimension 1 prefers the second to the first: margin -0.5,
    0.974077. The loss is half of both: 0.643669."""
    terms = batch(
        [
            Reply([-1.0], [-1.5], aspects=(1.0, 0.0)),
            Reply([-2.0], [-2.0], aspects=(0.5, 1.0)),
            Reply([-1.0], [-0.5], aspects=(0.0, 0.5)),
        ]
    )
    loss = Panacea(beta=1.0)(replace(terms, progress=EVENLY)).loss()
    assert loss.item() == pytest.approx(0.5 * 0.3132617 + 0.5 * 0.9740770, abs=1e-6)


def test_a_dimension_is_the_mean_over_the_groups_that_it_tells_apart():
    """Two groups in dimension 0, one in dimension 1: a tie and a null leave the others."""
    nan = math.nan
    terms = batch(
        [Reply([-1.0], aspects=(1.0, 0.5)), Reply([-2.0], aspects=(0.0, 0.5))],
        [Reply([-1.0], aspects=(1.0, nan)), Reply([-2.0], aspects=(0.0, 1.0))],
        [Reply([-1.0], aspects=(nan, 0.0)), Reply([-2.0], aspects=(nan, 1.0))],
        [Reply([-3.0], aspects=(0.2, nan)), Reply([-2.0], aspects=(0.1, nan))],
    )
    output = Panacea()(terms)
    assert output.counts().tolist() == [3.0, 1.0]
    assert output.terms[0].counts.tolist() == [1.0, 1.0, 0.0, 1.0]


def test_with_one_dimension_weighed_alone_it_is_dpo():
    pairs = pair_batch([-3.0, -1.0], [-2.0, -4.0], [-2.5, -1.5], [-2.5, -3.0])
    aspects = torch.tensor([[1.0, math.nan], [0.0, math.nan]] * 2, dtype=torch.float64)
    objective = Panacea(beta=0.3)
    (term, _) = objective(replace(pairs, aspects=aspects)).terms
    expected = DPO(beta=0.3)(pairs).loss()
    assert (term.sums.sum() / term.counts.sum()).item() == pytest.approx(expected.item())
    assert term.scale == objective.steering(Progress())[0]


def test_gradients_are_those_of_finite_differences():
    terms = batch(
        [Reply([-1.0, -0.5], [-1.5, -0.2], aspects=(1.0, 0.0)), Reply([-2.0], [-1.0])],
        [Reply([-0.3], [-0.7], aspects=(0.0, 2.0)), Reply([-1.1, -2.0], [-1.0, -1.0])],
    )
    assert gradcheck(Panacea(), terms)


def test_a_preference_is_drawn_from_the_simplex_by_seed_and_step():
    drawn = [Panacea(dimensions=3).steering(Progress(step)) for step in range(2000)]
    assert all(math.fsum(weights) == pytest.approx(1.0) and min(weights) > 0 for weights in drawn)
    means = torch.tensor(drawn).mean(0)
    assert torch.allclose(means, torch.full((3,), 1 / 3), atol=0.02)
    assert len(set(drawn)) == 2000
    assert drawn[7] == Panacea(dimensions=3).steering(Progress(7, 100, 0.5, 2.0))
    assert drawn[7] != Panacea(dimensions=3, seed=1).steering(Progress(7))
    assert Panacea(dimensions=4).steering(EVENLY) == (0.25,) * 4


def test_the_first_loss_is_ln_2_for_the_dimensions_that_are_there():
    terms = batch([Reply([-1.0], aspects=(1.0, 0.5)), Reply([-2.0], aspects=(0.0, 0.5))])
    objective = Panacea()
    weight = objective.steering(Progress())[0]
    assert objective.initial_loss(terms) == pytest.approx(weight * math.log(2))
    assert objective(terms).loss().item() == pytest.approx(weight * math.log(2))


def test_terms_without_enough_dimensions_are_refused():
    terms = batch([Reply([-1.0], aspects=(1.0, 0.5)), Reply([-2.0])])
    with pytest.raises(ValueError, match="`aspects` has not enough of them"):
        Panacea(dimensions=3)(terms)
    with pytest.raises(ValueError, match=r"Panacea\.dimensions is 1: it must be at least 2"):
        Panacea(dimensions=1)
