"""Bradley-Terry ratings of several models from comparisons in pairs.

Paper: Bradley and Terry, "Rank Analysis of Incomplete Block Designs: I. The Method of Paired
Comparisons", Biometrika 39 (1952). P(i is preferred to j) = sigmoid(r_i - r_j); a draw is half a
win for each.
Differs: every two models that met get `PRIOR` drawn comparisons more, so that a model that has won
or lost all has a finite rating.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.stats import Interval

Floats = npt.NDArray[np.float64]

PRIOR = 0.1
"""Drawn comparisons added to every two models that met."""
SCALE = 400 / math.log(10)
"""Points for a logit, as in chess: 400 points are odds of ten to one."""
MEAN = 1000.0
"""The mean rating."""

_SMALLEST_STEP = 1e-9
_MOST_STEPS = 200


class Rating(NamedTuple):
    """The strength of a model.

    Attributes:
        rating: Points; 400 more are odds of ten to one.
        rating_ci: 95% bootstrap interval over prompts.
    """

    rating: float
    rating_ci: Interval


def bradley_terry(wins: Floats) -> Floats:
    """The likeliest ratings.

    Newton's method with steps that are sure to raise the likelihood, as in `eval.length_control`.

    Args:
        wins: (..., M, M) how often the model of the row was preferred to that of the column.

    Returns:
        (..., M) ratings in points, of mean `MEAN`.

    Raises:
        ValueError: Two models are not connected by any chain of comparisons.
    """
    models = wins.shape[-1]
    met = wins + wins.mT
    if not _connected(met.reshape(-1, models, models).sum(axis=0) > 0):
        raise ValueError("some models never met, not even by way of others")
    wins = wins + PRIOR / 2 * (met > 0)
    met = wins + wins.mT
    logits = np.zeros(wins.shape[:-1])
    for _ in range(_MOST_STEPS):
        chances = 1 / (1 + np.exp(logits[..., None, :] - logits[..., :, None]))
        slope = (wins - met * chances).sum(axis=-1)
        weight = met * chances * chances.mT
        # Ratings have no zero of their own: the ones fix their mean.
        curve = np.eye(models) * weight.sum(axis=-1)[..., None] - weight + 1 / models
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        moved = np.ptp(step, axis=-1)
        logits += step * (np.log1p(moved) / np.maximum(moved, 1e-300))[..., None]
        if not (moved > _SMALLEST_STEP).any():
            break
    ratings: Floats = MEAN + SCALE * (logits - logits.mean(axis=-1, keepdims=True))
    return ratings


def rate(wins: Floats, seed: int, resamples: int = 1000, level: float = 0.95) -> list[Rating]:
    """Ratings with bootstrap intervals over prompts.

    Args:
        wins: (P, M, M) for each prompt the score of the row's model against the column's, 0 where
            they did not meet.
        seed: Seed of the resampling.
        resamples: How often prompts are drawn anew.
        level: Coverage.

    Raises:
        ValueError: As for `bradley_terry`.
    """
    prompts, models = wins.shape[:2]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), resamples)
    drawn = (counts @ wins.reshape(prompts, -1)).reshape(-1, models, models)
    # Models that met nowhere in a resample are held together by a trace of all prompts.
    drawn = drawn + 1e-6 * wins.mean(axis=0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    lows, highs = np.quantile(bradley_terry(drawn), tails, axis=0)
    ratings = bradley_terry(wins.sum(axis=0))
    return [
        Rating(float(rating), Interval(float(low), float(high)))
        for rating, low, high in zip(ratings, lows, highs, strict=True)
    ]


def _connected(met: npt.NDArray[np.bool_]) -> bool:
    """Whether every model can be reached from the first."""
    reached = np.eye(len(met), dtype=bool)[0]
    for _ in range(len(met)):
        reached = reached | (met & reached[:, None]).any(axis=0)
    return bool(reached.all())
