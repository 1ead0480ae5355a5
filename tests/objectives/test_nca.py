from __future__ import annotations

import math
from dataclasses import replace

import pytest

from alignment.objectives.nca import NCA
from tests.objectives.batches import Reply, batch, gradcheck, gradient, pair_batch, score_batch


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_worked_numbers() -> None:
    """Rewards ln 3 and 0 at tau 1 give w = (3/4, 1/4); log-ratios 2, -4 at beta 0.5 give r = 1, -2.

    loss = -(3/4 ls(1) + 1/4 ls(-2)) - (ls(-1) + ls(2)) / 2
    """
    terms = score_batch([[-3.0, -5.0]], [[-5.0, -1.0]], [[math.log(3), 0.0]])
    data = 0.75 * log_sigmoid(1) + 0.25 * log_sigmoid(-2)
    noise = (log_sigmoid(-1) + log_sigmoid(2)) / 2
    assert NCA(beta=0.5, tau=1.0)(terms).loss().item() == pytest.approx(-data - noise)


def test_worked_numbers_of_pairs() -> None:
    """r = 1 and -2: -ls(1) - (ls(-1) + ls(2)) / 2, and biased -ls(1) - ls(2)."""
    terms = pair_batch([-3.0], [-5.0], [-5.0], [-1.0])
    plain, biased = NCA(beta=0.5, form="pair"), NCA(beta=0.5, form="pair", biased=True)
    expected = -log_sigmoid(1) - (log_sigmoid(-1) + log_sigmoid(2)) / 2
    assert plain(terms).loss().item() == pytest.approx(expected)
    assert biased(terms).loss().item() == pytest.approx(-log_sigmoid(1) - log_sigmoid(2))


def test_gradcheck_with_groups_of_different_size() -> None:
    terms = batch(
        [Reply([-1.0, -0.5], [-1.5, -0.1], reward=0.3), Reply([-2.0], [-1.0], reward=-1.0)],
        [Reply([-0.4], [-0.6], reward=2.0)],
        [Reply([-0.2 * k], [-0.3], reward=0.1 * k) for k in range(1, 6)],
    )
    assert gradcheck(NCA(beta=0.7, tau=0.5), terms)


@pytest.mark.parametrize("biased", [False, True])
def test_gradcheck_of_pairs(biased: bool) -> None:
    terms = pair_batch([-3.0, -1.0], [-5.0, -2.0], [-5.0, -1.2], [-1.0, -2.2])
    assert gradcheck(NCA(beta=0.7, form="pair", biased=biased), terms)


def test_the_order_of_responses_does_not_matter() -> None:
    group = [Reply([-0.4 * k, -0.1], [-0.5, -0.3], reward=(-1.0) ** k * k) for k in range(1, 5)]
    objective = NCA(beta=0.5, tau=0.7)
    forward, backward = objective(batch(group)), objective(batch(group[::-1]))
    assert forward.loss().item() == pytest.approx(backward.loss().item(), rel=1e-14)
    for name, mean in forward.metrics.items():
        assert mean.sum.item() == pytest.approx(backward.metrics[name].sum.item(), rel=1e-14)


def test_two_responses_with_hard_rewards_are_the_pair_form() -> None:
    columns = ([-3.0, -8.0], [-5.0, -2.0], [-7.0, -6.0], [-3.0, -4.0])
    pair = pair_batch(*columns)
    hard = replace(pair, reward=pair.role.double())
    grouped = NCA(beta=0.3, tau=1e-4)(hard).loss().item()
    assert grouped == pytest.approx(NCA(beta=0.3, form="pair")(pair).loss().item(), rel=1e-14)


def test_a_constant_on_all_rewards_changes_nothing_and_on_log_ratios_it_does() -> None:
    logps, ref, rewards = [[-1.0, -2.0, -3.0]], [[-2.0, -2.0, -2.0]], [[1.0, 0.5, 0.0]]
    objective = NCA(beta=0.5, tau=0.5)
    loss = objective(score_batch(logps, ref, rewards)).loss().item()
    shifted_rewards = [[reward + 7.0 for reward in rewards[0]]]
    shifted_logps = [[logp - 7.0 for logp in logps[0]]]
    assert objective(score_batch(logps, ref, shifted_rewards)).loss().item() == pytest.approx(loss)
    assert objective(score_batch(shifted_logps, ref, rewards)).loss().item() > loss + 1


def test_the_bonus_gives_a_tie_to_the_first_response() -> None:
    terms = score_batch([[-1.0, -2.0]], [[-2.0, -1.0]], [[5.0, 5.0]])
    won = score_batch([[-1.0, -2.0]], [[-2.0, -1.0]], [[6.0, 5.0]])
    with_bonus = NCA(beta=0.5, first_response_bonus=0.01)
    assert with_bonus(terms).loss().item() == pytest.approx(NCA(beta=0.5)(won).loss().item())


def test_the_biased_variant_is_for_pairs() -> None:
    with pytest.raises(ValueError, match=r"NCA.biased is True, .* use form: pair"):
        NCA(biased=True)


def test_needs_follow_the_form() -> None:
    assert NCA().needs == {"reference", "reward"}
    assert NCA(form="pair").needs == {"reference", "pairs"}


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Three groups of two from thu-ml/Noise-Contrastive-Alignment, temperature 1, bonus 0.01."""
    objective = NCA(beta=0.1, tau=1.0, first_response_bonus=0.01)
    terms = score_batch(
        [
            [-44.907118655187375, -28.267885499100164],
            [-10.759993954178434, -7.03522423275686],
            [-25.303367719018993, -30.925990935132504],
        ],
        [
            [-45.01604493626098, -29.10091529309303],
            [-9.588055340158512, -3.2958095054108014],
            [-26.802003530225903, -28.66769878138298],
        ],
        [[10.0, 3.0], [5.0, 3.0], [6.0, 5.0]],
    )
    output = objective(terms)
    assert output.loss().item() == pytest.approx(1.368689913977581, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [1.404820893834668, 1.350389122645741, 1.3508597254523336], rel=1e-12
    )
    assert gradient(objective, terms)[:2] == pytest.approx(
        [-0.008182225465482239, 0.008665821057956956], rel=1e-12
    )


def test_the_value_of_trl_for_pairs_is_reproduced() -> None:
    """One pair from TRL's `DPOTrainer` with `loss_type="nca_pair"` and beta 0.1."""
    objective = NCA(beta=0.1, form="pair")
    terms = pair_batch(
        [-35.83521172247899], [-3.9907666956814407], [-36.15681587822201], [-4.732204395062621]
    )
    assert objective(terms).loss().item() == pytest.approx(1.3973276236597165, rel=1e-12)
    assert gradient(objective, terms) == pytest.approx(
        [-0.02379408835293591, 0.025926372784117992], rel=1e-12
    )
