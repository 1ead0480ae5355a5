"""Which negatives of many to learn from, as AMPO chooses them.

Paper: AMPO: Active Multi-Preference Optimization, arXiv 2502.18293. Of the answers to a prompt the
best one by reward is the positive; of the others, k are selected by reward, by where they lie in
the space of embeddings, or by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from alignment.cli import UserError

Vectors = npt.NDArray[np.float64]
Selection = Literal["bottom_k", "coreset", "opt_select", "opt_select_exact"]

_MISSING = "install the extra `select` (scikit-learn and scipy): pip install '.[select]'"


def select(
    how: Selection, embeddings: Vectors, rewards: Sequence[float], k: int, seed: int = 0
) -> list[int]:
    """Selects answers.

    Args:
        how: `bottom_k`, `coreset`, or `opt_select` by local search or exactly.
        embeddings: (n, H) of the answers.
        rewards: (n,) of the same.
        k: How many; all where there are no more.
        seed: Of the k-means of `coreset`.

    Returns:
        Their indices in rising order.

    Raises:
        UserError: A library is missing.
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if k >= len(rewards):
        return list(range(len(rewards)))
    values = np.asarray(rewards, dtype=np.float64)
    if how == "bottom_k":
        return bottom_k(values, k)
    if how == "coreset":
        return coreset(embeddings, values, k, seed)
    distances, weights = distances_of(embeddings), weights_of(values)
    search = local_search if how == "opt_select" else exact
    return search(distances, weights, k)


def bottom_k(rewards: Vectors, k: int) -> list[int]:
    """The k answers with the lowest rewards; of equal ones the earlier."""
    return sorted(map(int, np.argsort(rewards, kind="stable")[:k]))


def coreset(embeddings: Vectors, rewards: Vectors, k: int, seed: int) -> list[int]:
    """The answer with the lowest reward of each of k clusters by k-means.

    Fewer than k where fewer embeddings differ.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise UserError(f"`coreset` clusters by k-means: {_MISSING}") from None
    k = min(k, len(np.unique(embeddings, axis=0)))
    labels = KMeans(k, n_init=10, random_state=seed).fit(embeddings).labels_
    clusters = (np.flatnonzero(labels == label) for label in range(k))
    return sorted(int(members[np.argmin(rewards[members])]) for members in clusters)


def weights_of(rewards: Vectors) -> Vectors:
    """(n,) exp(mean reward - reward): what is worse weighs more."""
    weights: Vectors = np.exp(rewards.mean() - rewards)
    return weights


def distances_of(embeddings: Vectors) -> Vectors:
    """(n, n) Euclidean distances."""
    differences = embeddings[:, None, :] - embeddings[None, :, :]
    distances: Vectors = np.sqrt((differences**2).sum(axis=2))
    return distances


def cost(distances: Vectors, weights: Vectors, chosen: Sequence[int]) -> float:
    """Opt-select's objective: the sum over i of w_i times the distance to the nearest chosen."""
    return float(weights @ distances[:, list(chosen)].min(axis=1))


def local_search(distances: Vectors, weights: Vectors, k: int) -> list[int]:
    """K medoids that no swap of one for another improves.

    The cost is at most five times the least one where distances are a metric: Arya et al., "Local
    Search Heuristics for k-Median and Facility Location Problems", SIAM Journal on Computing 33
    (2004). It begins with greedy choices and takes the best swap each time.

    Args:
        distances: (n, n).
        weights: (n,) positive.
        k: From 1 to n.

    Returns:
        Indices in rising order.
    """
    weighted = weights[:, None] * distances
    chosen = [int(np.argmin(weighted.sum(axis=0)))]
    while len(chosen) < k:
        nearest = weighted[:, chosen].min(axis=1)
        totals = np.minimum(nearest[:, None], weighted).sum(axis=0)
        totals[chosen] = np.inf
        chosen.append(int(np.argmin(totals)))
    best = cost(distances, weights, chosen)
    while True:
        total, place, new = _best_swap(weighted, chosen)
        if not total < best * (1 - 1e-12):  # a gain within rounding could go on for ever
            return sorted(chosen)
        best, chosen[place] = total, new


def exact(distances: Vectors, weights: Vectors, k: int) -> list[int]:
    """K medoids of least cost, by mixed-integer programming.

    Args:
        distances: (n, n).
        weights: (n,) positive.
        k: From 1 to n.

    Returns:
        Indices in rising order.

    Raises:
        UserError: scipy is missing.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import eye_array, hstack, kron, vstack
    except ImportError:
        raise UserError(f"`opt_select_exact` solves an integer program: {_MISSING}") from None
    # Variables: whether i is served by j (n x n, row by row), then whether j is chosen (n).
    n = len(weights)
    served_once = hstack([kron(eye_array(n), np.ones((1, n))), np.zeros((n, n))])
    by_the_chosen = hstack([eye_array(n * n), kron(np.ones((n, 1)), -eye_array(n))])
    k_chosen = np.concatenate([np.zeros(n * n), np.ones(n)])[None, :]
    lower = np.concatenate([np.ones(n), np.full(n * n, -np.inf), [k]])
    upper = np.concatenate([np.ones(n), np.zeros(n * n), [k]])
    matrix = vstack([served_once, by_the_chosen, k_chosen])
    solved = milp(
        np.concatenate([(weights[:, None] * distances).ravel(), np.zeros(n)]),
        # With whole medoids each answer is served wholly by its nearest anyway.
        integrality=np.concatenate([np.zeros(n * n), np.ones(n)]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix.tocsc(), lower, upper),
        options={"mip_rel_gap": 0.0},
    )
    if not solved.success:
        raise RuntimeError(f"the solver ended without an optimum: {solved.message}")
    return sorted(map(int, np.flatnonzero(solved.x[n * n :] > 0.5)))


def _best_swap(weighted: Vectors, chosen: list[int]) -> tuple[float, int, int]:
    """The least cost after a swap, the place in `chosen` that is freed, and who takes it."""
    found = (np.inf, 0, 0)
    for place in range(len(chosen)):
        others = [*chosen[:place], *chosen[place + 1 :]]
        kept = weighted[:, others].min(axis=1) if others else np.full(len(weighted), np.inf)
        totals = np.minimum(kept[:, None], weighted).sum(axis=0)
        totals[chosen] = np.inf
        new = int(np.argmin(totals))
        if totals[new] < found[0]:
            found = (float(totals[new]), place, new)
    return found
