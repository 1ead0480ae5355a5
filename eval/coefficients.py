"""Coefficients of agreement between raters, and rates corrected for a rater's errors.

Labels are any hashable values, nominal. None is a label that is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

Labels = Sequence[Hashable]


def cohen_kappa(first: Labels, second: Labels) -> float | None:
    """Cohen's kappa: agreement beyond what two raters with these habits reach by chance.

    Paper: Cohen, "A coefficient of agreement for nominal scales", 1960. kappa = (p_o - p_e) /
    (1 - p_e), p_e = the sum over labels of the product of both raters' shares. None is a label
    like any other here: who says nothing does not agree with who says something.

    Args:
        first: (n,) labels of one rater.
        second: (n,) labels of the other.

    Returns:
        At most 1; None where chance alone agrees always, or there is nothing.
    """
    if not first:
        return None
    n, (one, two) = len(first), (Counter(first), Counter(second))
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(one[label] * two[label] for label in one) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def gwet_ac1(ratings: Sequence[Labels], categories: int | None = None) -> float | None:
    """Gwet's AC1: agreement beyond chance, where chance is small if one label dominates.

    Paper: Gwet, "Computing inter-rater reliability and its variance in the presence of high
    agreement", 2008; with labels missing as in his Handbook. p_e = the sum over labels of
    pi (1 - pi) / (q - 1), pi = the mean share of a label over items.

    Args:
        ratings: For each item the labels that its raters gave.
        categories: Number q of labels that could have been given; those that were, if None.

    Returns:
        At most 1; None where no item has two labels, or there is but one category.
    """
    counts = _counts(ratings)
    q = max(categories or 0, counts.shape[1])
    totals = counts.sum(axis=1)
    paired = totals >= 2
    if not paired.any() or q < 2:
        return None
    rated = counts[totals > 0] / totals[totals > 0, None]
    shares = rated.mean(axis=0)
    observed = _pairs_agreeing(counts[paired]).mean()
    chance = (shares * (1 - shares)).sum() / (q - 1)
    return float((observed - chance) / (1 - chance))


def krippendorff_alpha(ratings: Sequence[Labels]) -> float | None:
    """Krippendorff's alpha for nominal labels: 1 - disagreement observed / expected.

    Paper: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011. Items with fewer than
    two labels tell nothing and are left out.

    Args:
        ratings: For each item the labels that its raters gave.

    Returns:
        At most 1; None where no item has two labels, or all labels are the same.
    """
    counts = _counts(ratings)
    counts = counts[counts.sum(axis=1) >= 2]
    total = counts.sum()
    values = counts.sum(axis=0)
    expected = 1 - (values * (values - 1)).sum() / (total * (total - 1)) if total else 0.0
    if expected == 0:
        return None
    weights = counts.sum(axis=1) / total
    observed = 1 - (weights * _pairs_agreeing(counts)).sum()
    return float(1 - observed / expected)


def rogan_gladen(
    apparent: npt.ArrayLike, sensitivity: npt.ArrayLike, specificity: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """The true rate behind one that was measured by a rater who errs.

    Paper: Rogan and Gladen, "Estimating prevalence from the results of a screening test", 1978.
    rate = (apparent + specificity - 1) / (sensitivity + specificity - 1), kept in [0, 1].

    Args:
        apparent: Rate as measured, in [0, 1].
        sensitivity: Share of true cases that the rater finds.
        specificity: Share of others that the rater leaves out.

    Returns:
        The rate; NaN where the rater tells nothing, sensitivity + specificity being 1 or less.
    """
    informed = np.asarray(sensitivity, np.float64) + np.asarray(specificity, np.float64) - 1
    excess = np.asarray(apparent, np.float64) + np.asarray(specificity, np.float64) - 1
    known = informed > 1e-12
    rate = np.divide(excess, informed, out=np.full(np.shape(informed), np.nan), where=known)
    clipped: npt.NDArray[np.float64] = np.clip(rate, 0.0, 1.0)
    return clipped


def _counts(ratings: Sequence[Labels]) -> npt.NDArray[np.float64]:
    """(items, labels) how often each label was given to each item."""
    labels = sorted({label for item in ratings for label in item if label is not None}, key=repr)
    index = {label: column for column, label in enumerate(labels)}
    counts = np.zeros((len(ratings), len(labels)))
    for row, item in enumerate(ratings):
        for label in item:
            if label is not None:
                counts[row, index[label]] += 1
    return counts


def _pairs_agreeing(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(items,) the share of pairs of raters who agree, of items with two labels or more."""
    totals = counts.sum(axis=1)
    shares: npt.NDArray[np.float64] = (counts * (counts - 1)).sum(axis=1) / (totals * (totals - 1))
    return shares
