"""Ratings by hand, against logistic regression, and where they would be infinite."""

import math

import numpy as np
import pytest

from eval.ratings import MEAN, PRIOR, SCALE, bradley_terry, rate


def test_two_models_are_as_far_apart_as_their_odds():
    """With the prior 30.05 wins to 10.05: 400 * log10 of the odds is 190.3 points."""
    first, second = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert first - second == pytest.approx(400 * math.log10(30.05 / 10.05))
    assert (first + second) / 2 == pytest.approx(MEAN)


def test_ratings_are_those_of_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 40, (4, 4)).astype(float) * (1 - np.eye(4))
    rows, labels, weights = [], [], []
    for i in range(4):
        for j in range(4):
            if i != j:
                rows.append(np.eye(4)[i] - np.eye(4)[j])
                labels.append(1)
                weights.append(wins[i, j] + PRIOR / 2)
    x, w = np.array(rows), np.array(weights)
    model = linear_model.LogisticRegression(C=1e9, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(np.concatenate([x, -x]), np.repeat([1, 0], 12), sample_weight=np.tile(w, 2))
    theirs = MEAN + SCALE * (model.coef_[0] - model.coef_[0].mean())
    np.testing.assert_allclose(bradley_terry(wins), theirs, atol=0.05)


def test_a_model_that_always_wins_has_a_finite_rating():
    ratings = bradley_terry(np.array([[0.0, 50.0, 50.0], [0.0, 0.0, 25.0], [0.0, 25.0, 0.0]]))
    assert ratings[0] - ratings[1] == pytest.approx(400 * math.log10(50.05 / 0.05), rel=1e-6)
    assert ratings[1] == pytest.approx(ratings[2])


def test_models_that_never_met_cannot_be_compared():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 1.0
    with pytest.raises(ValueError, match="never met"):
        bradley_terry(wins)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Three models on one baseline, 100 prompts; the difference from the mean is known."""
    truth = np.array([0.6, 0.0, -0.6, 0.0])
    truth_points = MEAN + SCALE * (truth - truth.mean())
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(40):
        wins = np.zeros((100, 4, 4))
        for model in range(3):
            won = rng.random(100) < 1 / (1 + np.exp(truth[3] - truth[model]))
            wins[:, model, 3], wins[:, 3, model] = won, ~won
        for rating, expected in zip(rate(wins, seed, 100, level=0.9), truth_points, strict=True):
            low, high = rating.rating_ci
            covered += low <= expected <= high
    assert 0.8 * 160 <= covered <= 0.98 * 160


def test_models_that_met_on_few_prompts_survive_a_resample_without_them():
    wins = np.zeros((30, 3, 3))
    wins[:, 0, 1] = 0.7
    wins[:, 1, 0] = 0.3
    wins[0, 1, 2] = 1.0
    assert all(np.isfinite(rating.rating_ci).all() for rating in rate(wins, 0, 50))
