"""Coefficients against scikit-learn, statsmodels, krippendorff, and worked examples."""

import random
from collections.abc import Sequence

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from eval.coefficients import cohen_kappa, gwet_ac1, krippendorff_alpha, rogan_gladen


def drawn(seed: int, raters: int, items: int = 60, missing: float = 0.0) -> list[list[int | None]]:
    """Raters who give the true label two times in three."""
    rng = random.Random(seed)
    rows = []
    for _ in range(items):
        truth = rng.randrange(3)
        row = [truth if rng.random() < 0.67 else rng.randrange(3) for _ in range(raters)]
        rows.append([None if rng.random() < missing else label for label in row])
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int):
    first, second = zip(*drawn(seed, 2), strict=True)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_kappa_takes_a_missing_label_for_one_of_its_own():
    first, second = zip(*drawn(0, 2, missing=0.1), strict=True)
    named = [
        ["none" if label is None else str(label) for label in side] for side in (first, second)
    ]
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(*named), abs=1e-12)


def test_kappa_of_a_worked_example():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = .7, p_e = .5 * .6 + .5 * .4 = .5."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(0.4)


@pytest.mark.parametrize("labels", [[], [1, 1, 1]])
def test_kappa_without_anything_to_disagree_on_is_none(labels: list[int]):
    assert cohen_kappa(labels, labels) is None


@pytest.mark.parametrize(("raters", "missing"), [(2, 0.0), (3, 0.0), (4, 0.3)])
def test_alpha_is_that_of_its_package(raters: int, missing: float):
    rows = drawn(1, raters, missing=missing)
    table = np.array([[np.nan if label is None else label for label in row] for row in rows]).T
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    assert krippendorff_alpha(rows) == pytest.approx(expected, abs=1e-12)


def test_alpha_of_a_worked_example():
    """Krippendorff 2011, example C: nominal data, four observers, labels missing: .743."""
    table = (
        "1,2,3,3,2,1,4,1,2,,,",
        "1,2,3,3,2,2,4,1,2,5,,3",
        ",3,3,3,2,3,4,2,2,5,1,",
        "1,2,3,3,2,4,4,1,2,5,1,",
    )
    rows = [*zip(*([cell or None for cell in line.split(",")] for line in table), strict=True)]
    assert krippendorff_alpha(rows) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("ratings", [[], [[1, None], [None, 2]], [[1, 1], [1, 1]]])
def test_alpha_without_anything_to_disagree_on_is_none(ratings: list[list[int | None]]):
    assert krippendorff_alpha(ratings) is None


def test_ac1_of_a_worked_example():
    """118 yes-yes, 5 yes-no, 2 no-yes, 0 no-no: p_o = 118 / 125 = .944; pi = 243 / 250 = .972;
    p_e = 2 * .972 * .028 = .054432; (.944 - .054432) / (1 - .054432) = .94078."""
    pairs = [("y", "y")] * 118 + [("y", "n")] * 5 + [("n", "y")] * 2
    assert gwet_ac1(pairs) == pytest.approx(0.94078, abs=1e-5)
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(-0.0234, abs=1e-4)


@pytest.mark.parametrize("raters", [2, 3, 5])
def test_ac1_differs_from_fleiss_by_chance_alone(raters: int):
    """Both have the p_o of Fleiss; kappa_F = (p_o - sum pi^2) / (1 - sum pi^2) gives it away."""
    rows = drawn(2, raters)
    counts, _ = aggregate_raters(np.array(rows))
    shares = counts.sum(axis=0) / counts.sum()
    kappa, by_chance = fleiss_kappa(counts), (shares**2).sum()
    observed = kappa * (1 - by_chance) + by_chance
    chance = (shares * (1 - shares)).sum() / 2
    assert gwet_ac1(rows) == pytest.approx((observed - chance) / (1 - chance), abs=1e-12)


def test_ac1_of_labels_that_might_have_been_given():
    """Always the same label: no chance agreement if two were possible, nothing to say if one."""
    assert gwet_ac1([[1, 1]] * 5, categories=2) == 1.0
    assert gwet_ac1([[1, 1]] * 5) is None
    assert gwet_ac1([[1, None]]) is None


def test_a_single_label_of_an_item_counts_in_shares_and_not_in_agreement():
    """Two items agree, one has a single label: p_o = 1 whatever chance is."""
    assert gwet_ac1([[1, 1], [2, 2], [1, None]]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("apparent", "sensitivity", "specificity", "rate"),
    [
        (0.5, 1.0, 1.0, 0.5),
        (0.6, 0.9, 0.8, 0.4 / 0.7),
        (0.1, 0.9, 0.8, 0.0),
        (0.95, 0.9, 0.8, 1.0),
    ],
)
def test_a_rate_is_corrected_and_kept_in_bounds(
    apparent: float, sensitivity: float, specificity: float, rate: float
):
    """(.6 + .8 - 1) / (.9 + .8 - 1) = .4 / .7."""
    assert rogan_gladen(apparent, sensitivity, specificity) == pytest.approx(rate)


@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (0.5, 0.2, 0.3)])
def test_a_rater_who_tells_nothing_corrects_nothing(rates: Sequence[float]):
    assert np.isnan(rogan_gladen(*rates))
