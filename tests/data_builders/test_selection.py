"""AMPO's selections against brute force, and local search within what is proven of it."""

from itertools import combinations

import numpy as np
import pytest

from data_builders.selection import (
    Selection,
    Vectors,
    cost,
    distances_of,
    exact,
    local_search,
    select,
    weights_of,
)


def instance(seed: int, n: int) -> tuple[Vectors, Vectors]:
    """Embeddings in two dimensions and rewards, some of them equal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.integers(1, 6, n).astype(float)


def least(distances: Vectors, weights: Vectors, k: int) -> float:
    subsets = combinations(range(len(weights)), k)
    return min(cost(distances, weights, subset) for subset in subsets)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_exact_choice_costs_what_the_best_of_all_subsets_costs(seed: int, k: int):
    pytest.importorskip("scipy")
    embeddings, rewards = instance(seed, 9)
    distances, weights = distances_of(embeddings), weights_of(rewards)
    chosen = exact(distances, weights, k)
    assert len(chosen) == k
    assert cost(distances, weights, chosen) == pytest.approx(least(distances, weights, k))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("k", [1, 3])
def test_local_search_is_within_five_times_the_least_cost(seed: int, k: int):
    embeddings, rewards = instance(seed, 9)
    distances, weights = distances_of(embeddings), weights_of(rewards)
    chosen = local_search(distances, weights, k)
    assert len(set(chosen)) == k
    assert cost(distances, weights, chosen) <= 5 * least(distances, weights, k) + 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_no_single_swap_improves_what_local_search_has_found(seed: int):
    embeddings, rewards = instance(seed, 12)
    distances, weights = distances_of(embeddings), weights_of(rewards)
    chosen = local_search(distances, weights, 4)
    here = cost(distances, weights, chosen)
    for out in chosen:
        for new in set(range(12)) - {*chosen}:
            swapped = [new if index == out else index for index in chosen]
            assert cost(distances, weights, swapped) >= here * (1 - 1e-9)


def test_opt_select_by_hand():
    """Answers at 0, 1 and 10 with rewards 2, 2 and 2: all weigh 1.

    One medoid at 1 costs 1 + 0 + 9 = 10; at 0 it costs 11, at 10 it costs 19. With reward 2 - ln 4
    at 10, whose weight relative to the others is 4, 10 costs 10 + 9 = 19 and 1 costs 1 + 36 = 37.
    """
    line = np.array([[0.0], [1.0], [10.0]])
    assert select("opt_select", line, [2.0, 2.0, 2.0], 1) == [1]
    assert select("opt_select", line, [2.0, 2.0, 2.0 - np.log(4)], 1) == [2]


def test_bottom_k_takes_the_lowest_rewards_and_of_equal_ones_the_earlier():
    assert select("bottom_k", np.zeros((5, 1)), [3.0, 1.0, 2.0, 1.0, 2.0], 3) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_a_coreset_has_the_lowest_reward_of_each_cluster(seed: int):
    """Three clusters far apart: any k-means finds them, so brute force is to know them."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    cluster = rng.permutation(np.repeat([0, 1, 2], 4))
    embeddings = centres[cluster] + rng.normal(size=(12, 2))
    rewards = rng.permutation(12).astype(float)
    lowest = [
        min(np.flatnonzero(cluster == number), key=rewards.__getitem__) for number in range(3)
    ]
    assert select("coreset", embeddings, list(rewards), 3, seed) == sorted(map(int, lowest))


def test_a_coreset_of_fewer_different_answers_is_smaller():
    pytest.importorskip("sklearn")
    same = np.array([[0.0], [0.0], [1.0], [1.0]])
    assert select("coreset", same, [2.0, 1.0, 4.0, 3.0], 3) == [1, 3]


@pytest.mark.parametrize("how", ["bottom_k", "coreset", "opt_select", "opt_select_exact"])
def test_all_are_selected_where_there_are_no_more(how: Selection):
    assert select(how, np.zeros((2, 1)), [1.0, 2.0], 3) == [0, 1]
    with pytest.raises(ValueError, match="at least 1"):
        select(how, np.zeros((2, 1)), [1.0, 2.0], 0)
