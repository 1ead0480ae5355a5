from __future__ import annotations

import pytest

from alignment.objectives.clha import CLHA
from tests.objectives.batches import Reply, batch, gradcheck, gradient


def reply(logp: float, reward: float, role: int = 0, tokens: int = 1) -> Reply:
    return Reply([logp / tokens] * tokens, reward=reward, role=role)


def test_worked_numbers() -> None:
    """Margin 1. Distance 1: gaps 5 and 4, losses 1 - (-2 + 3) = 0 and 1 - (-3 + 2.5) = 1.5.

    Their mean is 0.75. Distance 2: gap 9, 2 - (-2 + 2.5) = 1.5. Likelihood: 0.5 * 2^2 * 2 = 4.
    """
    terms = batch([reply(-2, 9), reply(-3, 4), reply(-2.5, 0)])
    loss = CLHA(margin=1.0, sft_weight=0.5)(terms).loss().item()
    assert loss == pytest.approx(0.75 + 1.5 + 4)


def test_gradcheck() -> None:
    terms = batch(
        [reply(-2, 9, tokens=2), reply(-3, 4), reply(-2.5, 0, tokens=3)],
        [reply(-1, 1), reply(-2, 8)],
    )
    assert gradcheck(CLHA(), terms)


def test_the_order_of_the_row_does_not_matter_unless_it_is_trusted() -> None:
    replies = [reply(-2, 9, role=1), reply(-3, 4), reply(-7, 0)]
    sorted_terms, shuffled = batch(replies), batch([replies[2], replies[0], replies[1]])
    assert CLHA()(sorted_terms).loss() == CLHA()(shuffled).loss()
    trusting = CLHA(order="data")
    assert trusting(sorted_terms).loss() == CLHA()(sorted_terms).loss()
    assert trusting(shuffled).loss() != CLHA()(shuffled).loss()


def test_a_gap_of_exactly_the_margin_makes_no_pair() -> None:
    assert CLHA(sft_weight=0.0)(batch([reply(-1, 3), reply(-1, 0)])).loss() == 0
    assert CLHA(sft_weight=0.0)(batch([reply(-1, 3.1), reply(-1, 0)])).loss() == 3


def test_a_demonstration_that_the_reward_dislikes_is_not_learnt_but_counts() -> None:
    """Two groups of two: 1 * 5 over 2; the marked one has reward -1."""
    groups = [[reply(-5, 1), reply(-1, 0)], [reply(-7, 2), reply(-4, -1, role=1)]]
    objective = CLHA(margin=100.0, sft_weight=1.0)
    assert objective(batch(*groups)).loss().item() == pytest.approx(2.5)


def test_means_are_pooled_over_groups_for_each_distance() -> None:
    """Three pairs of distance 1 with losses 3, 3 and 0 give 2, not the mean 1.5 of two groups."""
    groups = [
        [reply(-1, 20), reply(-1, 10), reply(-1, 0)],
        [reply(-1, 10), reply(-9, 0)],
    ]
    ranks = CLHA(sft_weight=0.0)(batch(*groups)).terms[0]
    assert (ranks.sums.sum() / ranks.counts.sum()).item() == 2.0


def test_a_group_that_is_too_large_is_named() -> None:
    with pytest.raises(ValueError, match=r"CLHA.largest_group is 2, but a group has 3 responses"):
        CLHA(largest_group=2)(batch([reply(-1, k) for k in range(3)]))


def test_the_values_of_the_authors_code_are_reproduced() -> None:
    """Three pairs in list order, the first of each the demonstration, with the script's weight."""
    sums = [
        (-7.295530022410285, -7.803965798300763),
        (-1.3045010165696336, -2.3734904334902875),
        (-1.9427198830207022, -10.297895968306847),
    ]
    lengths = [(4, 3), (1, 2), (3, 3)]
    rewards = [
        (-1.05381818462733, -1.16305527527077),
        (-4.827176929952993, 0.06378335331778283),
        (0.3841402977016783, 5.567932402474356),
    ]
    groups = [
        [
            reply(logp, reward, role, tokens)
            for logp, reward, role, tokens in zip(*row, (1, 0), size, strict=True)
        ]
        for *row, size in zip(sums, rewards, lengths, strict=True)
    ]
    terms, objective = batch(*groups), CLHA(order="data")
    assert objective(terms).loss().item() == pytest.approx(1.698727217081566, rel=1e-12)
    first_tokens = [gradient(objective, terms)[index] for index in (0, 4, 7, 8, 10, 13)]
    assert first_tokens == pytest.approx(
        [0.0, 0.0, -0.5, 0.24999999999999997, -0.18333333333333332, 0.16666666666666666], rel=1e-12
    )
