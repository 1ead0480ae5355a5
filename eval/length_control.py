"""The length-controlled win rate of AlpacaEval, by an exact solver.

Paper: "Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators", arXiv
2404.04475. What a judge prefers is put down to length, difficulty of the prompt, and model:
logit P(model wins) = w_l t + w_d d + w_m, with t = tanh((len_b - len_m) / std(len_b - len_m)).
The win rate at equal lengths is the mean of sigmoid(w_d d + w_m) over prompts.
Differs: the authors' solver stops early, up to 0.016 points from the optimum; this one does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.stats import Interval

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CS: Floats = np.logspace(-4, 4, 10)
"""The inverse strengths of the penalty that cross-validation chooses from."""
FOLDS = 5
REFERENCE_WEIGHT = 0.1
"""Weight of a row of the two reference sets: 0.2 in all for each prompt."""
LARGEST_GAP = 1e-10
"""Largest duality gap of a fit, relative to the objective at zero."""

_SMALLEST_STEP = 1e-5  # Newton's error is about the square of the last step
_MOST_STEPS = 500
_BATCH = 64  # resamples that are fitted together: what fits into a processor's cache


class Rows(NamedTuple):
    """Verdicts on answers: the model's, or those of the reference sets.

    The reference sets are the baseline's model told to be verbose, and concise: they say what
    length does where it is all that differs.

    Attributes:
        length: (m,) the feature t.
        difficulty: (m,) difficulty of the prompt; None where it is not known.
        target: (m,) preference for the answer over the baseline's, in [0, 1]; NaN: unjudged.
        prompt: (m,) index of the prompt, from 0.
    """

    length: Floats
    difficulty: Floats | None
    target: Floats
    prompt: Integers


class Design(NamedTuple):
    """What a length-controlled win rate is fitted on, R reference rows and the model's.

    Attributes:
        features: (n, k) columns t, d where there is a difficulty, and 1 for the model's rows.
        targets: (n,) preference for the model, in [0, 1].
        weights: (n,) weight of the row.
        prompts: (n,) index of the prompt, from 0.
        folds: (n,) the fold in which the row is held out.
        predicted: (m, k - 1) features but t of all rows of the model, judged or not.
        predicted_prompts: (m,) their prompts.
    """

    features: Floats
    targets: Floats
    weights: Floats
    prompts: Integers
    folds: Integers
    predicted: Floats
    predicted_prompts: Integers


class Fit(NamedTuple):
    """A fitted model.

    Attributes:
        weights: (k,) w_l, w_d where there is a difficulty, w_m.
        gap: Duality gap: how far from the optimum it is at most, relative to the objective at zero.
    """

    weights: Floats
    gap: float


def length_feature(lengths: npt.ArrayLike, baseline_lengths: npt.ArrayLike) -> Floats:
    """The feature t: positive where the baseline's answer is longer, in (-1, 1).

    Args:
        lengths: (m,) characters of the model's answers.
        baseline_lengths: (m,) characters of the baseline's answers to the same prompts.
    """
    difference = np.asarray(baseline_lengths, float) - np.asarray(lengths, float)
    spread = difference.std(ddof=1) if difference.size > 1 else 0.0
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def design(model: Rows, reference: Rows | None, *, by_row: bool) -> Design:
    """The rows of a fit.

    Args:
        model: The model's rows; difficulty is left out of the fit where they have none.
        reference: Those of the reference sets; None leaves length to the model's rows alone.
        by_row: Whether each row is a group of its own in cross-validation, as in the published
            numbers, rather than all rows of a prompt.
    """
    judged = ~np.isnan(model.target)
    features = _features(model, model, 1.0)
    rows, targets, prompts = features[judged], model.target[judged], model.prompt[judged]
    weights = np.ones(len(rows))
    if reference is not None:
        rows = np.concatenate([_features(reference, model, 0.0), rows])
        targets = np.concatenate([reference.target, targets])
        prompts = np.concatenate([reference.prompt, prompts])
        weights = np.concatenate([np.full(len(reference.target), REFERENCE_WEIGHT), weights])
    # Where no row is missing, these are the folds of scikit-learn's `GroupKFold`, either way.
    folds = (np.arange(len(rows)) if by_row else prompts) % FOLDS
    return Design(rows, targets, weights, prompts, folds, features[:, 1:], model.prompt)


def choose_c(rows: Design) -> float:
    """C with the least log-loss on held-out groups, the mean over folds.

    Args:
        rows: What to fit.
    """
    folds = np.unique(rows.folds)  # of few prompts there are fewer
    kept = np.stack([rows.weights * (rows.folds != fold) for fold in folds])
    held_out = [np.flatnonzero(rows.folds == fold) for fold in folds]
    found = before = np.zeros((len(folds), rows.features.shape[1]))
    losses = []
    for c in CS:
        # The penalty's pull falls as 1 / C, and the optimum moves about as much.
        start = found + (found - before) * (CS[0] / CS[1])
        found, before = solve(rows.features, rows.targets, c * kept, start), found
        losses.append(
            np.mean([_loss(rows, w, held) for w, held in zip(found, held_out, strict=True)])
        )
    return float(CS[int(np.argmin(losses))])


def fit(rows: Design, c: float) -> Fit:
    """The exact optimum of |w|_1 + c * sum of weighted log-losses.

    Args:
        rows: What to fit.
        c: Inverse strength of the penalty.

    Raises:
        ArithmeticError: The optimum was not reached.
    """
    mass = c * rows.weights
    (weights,) = solve(rows.features, rows.targets, mass[None])
    gap = duality_gap(rows.features, rows.targets, mass, weights)
    if not gap <= LARGEST_GAP:
        raise ArithmeticError(f"the fit at C = {c} is {gap:.1e} from its optimum")
    return Fit(weights, gap)


def win_rate(weights: Floats, predicted: Floats) -> float:
    """100 * mean sigmoid(w_d d + w_m): percent of wins at equal lengths.

    Args:
        weights: (k,) as `Fit` has them.
        predicted: (m, k - 1) as `Design` has them.
    """
    return 100.0 * float(_sigmoid(predicted @ weights[1:]).mean())


def bootstrap(
    rows: Design, c: float, seed: int, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """A percentile interval of the win rate: prompts are drawn anew and the model is refitted.

    A prompt takes its reference rows along. C and the scale of lengths stay as they are.

    Args:
        rows: What was fitted.
        c: The C it was fitted with.
        seed: Seed of the draws.
        resamples: How often prompts are drawn.
        level: Coverage.
    """
    drawn = np.unique(rows.predicted_prompts)
    rng = np.random.default_rng(seed)
    (start,) = solve(rows.features, rows.targets, c * rows.weights[None])
    rates: list[Floats] = []
    for first in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - first)
        counts = np.zeros((size, max(rows.prompts.max(initial=0), drawn.max()) + 1))
        # A reference row whose prompt the model has not answered stays once in every resample.
        counts[:, np.setdiff1d(rows.prompts, drawn)] = 1
        counts[:, drawn] = rng.multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn)), size)
        mass = c * rows.weights * counts[:, rows.prompts]
        found = solve(rows.features, rows.targets, mass, np.tile(start, (size, 1)))
        chances = _sigmoid(found[:, 1:] @ rows.predicted.T)
        rates.append(np.average(chances, axis=1, weights=counts[:, rows.predicted_prompts]))
    low, high = 100 * np.quantile(np.concatenate(rates), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def solve(
    features: Floats, targets: Floats, weights: Floats, start: Floats | None = None
) -> Floats:
    """Minimises |w|_1 + sum_i weights_i * log-loss(targets_i, w . features_i) to rounding error.

    Newton's method on the face of the penalty that w lies in. A step is as long as the objective is
    sure to fall (log(1 + r) / r of it, where r bounds the change of any logit: log-loss is
    self-concordant in this sense, Bach, arXiv 0910.4627) and ends where a weight meets zero.

    Args:
        features: (n, k) shared by all problems; k is small.
        targets: (n,) in [0, 1].
        weights: (B, n) one problem in each row, at least 0.
        start: (B, k) where to begin; zero by default.

    Returns:
        (B, k) the optima.

    Raises:
        ArithmeticError: The steps did not end.
    """
    n, k = features.shape
    found = np.zeros((len(weights), k)) if start is None else start.copy()
    squares = (features[:, :, None] * features[:, None, :]).reshape(n, k * k)
    reach = np.abs(features).max(axis=0)
    left = np.arange(len(weights))
    for _ in range(_MOST_STEPS):
        mass = weights[left] if len(left) < len(weights) else weights
        chances = _sigmoid(found[left] @ features.T)  # (b, n)
        slope = (mass * (chances - targets)) @ features
        curve = ((mass * (chances * (1 - chances))) @ squares).reshape(-1, k, k)
        found[left], steps = _step(found[left], slope, curve, reach)
        left = left[steps > _SMALLEST_STEP]
        if not left.size:
            return found
    raise ArithmeticError(f"no optimum after {_MOST_STEPS} steps")


def duality_gap(features: Floats, targets: Floats, weights: Floats, found: Floats) -> float:
    """How far the objective of `solve` is above its minimum at most, relative to that at zero.

    The dual point is that of `found`, scaled into the dual's feasible set.

    Args:
        features: (n, k).
        targets: (n,) in [0, 1].
        weights: (n,) of one problem.
        found: (k,) a solution.
    """
    logits = features @ found
    residual = _sigmoid(logits) - targets
    primal = np.abs(found).sum() + weights @ (np.logaddexp(0, logits) - targets * logits)
    scale = 1 / max(1.0, float(np.abs((weights * residual) @ features).max()))
    dual = weights @ _entropy(targets + scale * residual)
    return float((primal - dual) / (weights.sum() * np.log(2)))


def _step(at: Floats, slope: Floats, curve: Floats, reach: Floats) -> tuple[Floats, Floats]:
    """Where a step leads and how far it may move a logit: (b, k) and (b,)."""
    # A hair of ridge keeps features that are constant or alike solvable; the optimum stays.
    ridge = 1e-12 * (1 + curve.diagonal(axis1=1, axis2=2).sum(axis=1))
    curve = curve + ridge[:, None, None] * np.eye(at.shape[1])
    inside = at.all()
    step = _newton(curve, slope + np.sign(at)) if inside else _from_zero(at, slope, curve)
    moved = np.abs(step) @ reach
    share: Floats = np.log1p(moved) / np.maximum(moved, np.finfo(float).tiny)
    there: Floats = at + share[:, None] * step
    if (at * there < 0).any():  # a weight ends at zero on its way to the other side
        meets = np.full_like(at, np.inf)
        np.divide(-at, step, out=meets, where=at * there < 0)
        end = np.minimum(share, meets.min(axis=1))[:, None]
        there = np.where(meets <= end, 0.0, at + end * step)
    return there, moved


def _newton(curve: Floats, slope: Floats) -> Floats:
    step = np.linalg.solve(curve, -slope[:, :, None])[:, :, 0]
    return np.asarray(step, dtype=np.float64)


def _from_zero(at: Floats, slope: Floats, curve: Floats) -> Floats:
    """The step where weights are zero: of those, such move as are pulled by more than the penalty.

    A weight that the others would take to the wrong side of zero stays for this time.
    """
    leaving = np.where(np.abs(slope) > 1, -np.sign(slope), 0)
    side = np.where(at != 0, np.sign(at), leaving)
    while True:
        free = side != 0
        face = np.where(free[:, :, None] & free[:, None, :], curve, np.eye(at.shape[1]))
        step = _newton(face, np.where(free, slope + side, 0))
        astray = (at == 0) & (step * side < 0)
        if not astray.any():
            return step
        side[astray] = 0


def _features(rows: Rows, model: Rows, constant: float) -> Floats:
    columns = [rows.length, np.full_like(rows.length, constant)]
    if model.difficulty is not None:
        if rows.difficulty is None:
            raise ValueError("the reference rows have no difficulty, but the model's have one")
        columns.insert(1, rows.difficulty)
    return np.column_stack(columns)


def _loss(rows: Design, weights: Floats, held: Integers) -> float:
    logits, targets = rows.features[held] @ weights, rows.targets[held]
    return float((rows.weights[held] * (np.logaddexp(0, logits) - targets * logits)).mean())


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(1000) is infinite, and one over it is zero
        odds: Floats = np.exp(-logits)
    odds += 1
    return np.reciprocal(odds, out=odds)


def _entropy(chances: Floats) -> Floats:
    """Entropy of coins, nats; of rounding errors beyond certainty it is zero."""
    both = np.stack([chances, 1 - chances])
    logs = np.log(both, out=np.zeros_like(both), where=both > 0)
    entropy: Floats = -(both * logs).sum(axis=0)
    return entropy
