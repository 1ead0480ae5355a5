"""An exact optimum, certified and held against scikit-learn; intervals that cover the truth."""

import math

import numpy as np
import pytest

from eval import length_control
from eval.length_control import Rows, bootstrap, choose_c, design, duality_gap, fit, solve


def made_up(seed: int, size: int = 300, strength: float = 1.0, reference_rows: int = 0):
    """Rows of a model that is better by `strength` and a judge that likes length."""
    rng = np.random.default_rng(seed)
    length, difficulty = np.tanh(rng.normal(size=size)), rng.normal(size=size)
    logits = -1.5 * length + 0.7 * difficulty + strength + rng.normal(size=size)
    targets = 1 / (1 + np.exp(-2 * logits))
    reference = None
    if reference_rows:
        gamed, prompt = np.tanh(rng.normal(size=reference_rows)), np.arange(reference_rows) % size
        chances = 1 / (1 + np.exp(1.5 * gamed - 0.7 * difficulty[prompt]))
        reference = Rows(gamed, difficulty[prompt], chances, prompt)
    model = Rows(length, difficulty, targets, np.arange(size))
    return design(model, reference, by_row=False)


def test_one_feature_is_solved_by_hand():
    """Of 10 rows 8 win: |w| + 10 log(1 + e^w) - 8 w is least at sigmoid(w) = (8 - 1) / 10."""
    targets = np.array([1.0] * 8 + [0.0] * 2)
    (found,) = solve(np.ones((10, 1)), targets, np.ones((1, 10)))
    assert found[0] == pytest.approx(math.log(0.7 / 0.3), abs=1e-12)


def test_a_weak_pull_leaves_a_weight_at_zero():
    """At w = 0 the pull is 10 * (0.55 - 0.5) = 0.5, less than the penalty's 1."""
    (found,) = solve(np.ones((10, 1)), np.full(10, 0.55), np.ones((1, 10)))
    assert found[0] == 0.0


@pytest.mark.parametrize("c", [1e-4, 1e-2, 0.05, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_every_fit_is_certified(seed: int, c: float):
    rows = made_up(seed, size=80, strength=seed - 2.0, reference_rows=60)
    assert fit(rows, c).gap < 1e-11


def test_the_gap_tells_a_bad_fit():
    rows = made_up(0)
    weights = fit(rows, 1.0).weights
    gap = duality_gap(rows.features, rows.targets, rows.weights, weights + 0.1)
    assert gap > 1e-5


@pytest.mark.parametrize("wins", [0.0, 1.0])
def test_a_model_that_always_loses_or_wins_has_a_finite_fit(wins: float):
    rows = made_up(0)._replace(targets=np.full(300, wins))
    for c in (1.0, 1e4):
        found = fit(rows, c)
        assert np.isfinite(found.weights).all()
        assert length_control.win_rate(found.weights, rows.predicted) == pytest.approx(
            100 * wins, abs=1.0
        )


def test_a_start_far_away_leads_to_the_same_optimum():
    rows = made_up(1)
    mass = rows.weights[None]
    there = solve(rows.features, rows.targets, mass)
    for start in ([30.0, -30.0, 30.0], [-8.0, 0.0, 0.0], [0.0, 50.0, -50.0]):
        found = solve(rows.features, rows.targets, mass, np.array([start]))
        np.testing.assert_allclose(found, there, atol=1e-9)


def test_features_that_are_constant_or_alike_are_no_trouble():
    rows = made_up(2)
    features = np.column_stack([np.zeros(300), np.ones(300), np.ones(300)])
    found = fit(rows._replace(features=features), 1.0)
    assert found.weights[0] == 0.0
    assert found.gap < 1e-10


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_few_prompts_are_no_trouble(size: int):
    rows = made_up(size, size=size)
    c = choose_c(rows)
    assert fit(rows, c).gap < 1e-10
    low, high = bootstrap(rows, 100.0, seed=0, resamples=50)
    assert 0 <= low <= high <= 100


def test_equal_lengths_are_no_length_difference():
    assert length_control.length_feature([3, 4, 5], [5, 6, 7]).tolist() == [0, 0, 0]
    assert length_control.length_feature([3], [5]).tolist() == [0]


def test_it_is_the_optimum_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows = made_up(3, reference_rows=200)
    model = linear_model.LogisticRegression(
        l1_ratio=1.0, C=0.5, solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=100_000
    )
    twice = np.concatenate([rows.features, rows.features])
    labels = np.repeat([1, 0], len(rows.targets))
    mass = np.concatenate([rows.weights * rows.targets, rows.weights * (1 - rows.targets)])
    model.fit(twice, labels, sample_weight=mass)
    np.testing.assert_allclose(fit(rows, 0.5).weights, model.coef_[0], atol=1e-6)


def test_folds_are_those_of_scikit_learn_where_no_row_is_missing():
    selection = pytest.importorskip("sklearn.model_selection")
    rows = made_up(4, size=100, reference_rows=200)
    splits = selection.GroupKFold(5).split(rows.features, groups=rows.prompts)
    theirs = {frozenset(held.tolist()) for _, held in splits}
    ours = {frozenset(np.flatnonzero(rows.folds == fold).tolist()) for fold in range(5)}
    assert ours == theirs


def test_the_c_chosen_has_the_least_loss_on_prompts_held_out():
    """The same losses, one fit at a time."""
    rows = made_up(5, size=60, strength=0.1)
    losses = []
    for c in length_control.CS:
        parts = []
        for fold in range(5):
            held = rows.folds == fold
            (w,) = solve(rows.features, rows.targets, (c * rows.weights * ~held)[None])
            logits = rows.features[held] @ w
            parts.append(np.mean(np.logaddexp(0, logits) - rows.targets[held] * logits))
        losses.append(np.mean(parts))
    assert choose_c(rows) == length_control.CS[int(np.argmin(losses))]


def test_unjudged_rows_are_predicted_but_not_fitted():
    model = Rows(np.zeros(4), None, np.array([1, np.nan, 0.5, 0.0]), np.arange(4))
    rows = design(model, None, by_row=False)
    assert (rows.features.shape, rows.predicted.shape) == ((3, 2), (4, 1))


def test_the_bootstrap_refits_what_was_drawn():
    """One draw by hand: the multinomial counts as weights, prompts with their reference rows."""
    rows = made_up(6, size=40, reference_rows=40)
    low, high = bootstrap(rows, 1.0, seed=3, resamples=1)
    counts = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), 1)[0]
    (w,) = solve(rows.features, rows.targets, (rows.weights * counts[rows.prompts])[None])
    chances = 1 / (1 + np.exp(-rows.predicted @ w[1:]))
    rate = 100 * float(np.average(chances, weights=counts))
    assert (low, high) == pytest.approx((rate, rate), abs=1e-8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """The truth is the fit on very many rows; 100 intervals at 90% cover it 80 to 98 times."""
    everything = made_up(7, size=20_000)
    truth = length_control.win_rate(fit(everything, 1e3).weights, everything.predicted)
    covered = 0
    for seed in range(100):
        rows = made_up(1000 + seed, size=150)
        low, high = bootstrap(rows, 1e3, seed, resamples=100, level=0.9)
        covered += low <= truth <= high
    assert 80 <= covered <= 98
