from __future__ import annotations

import math
from dataclasses import replace

import pytest

from alignment.objectives.dpo import DPO
from alignment.objectives.infonca import InfoNCA
from tests.objectives.batches import Reply, batch, gradcheck, gradient, pair_batch, score_batch


def test_worked_numbers() -> None:
    """Rewards ln 3 and 0 at tau 1 give w = (3/4, 1/4); log-ratios 2, -4 at beta 0.5 give r = 1, -2.

    log softmax(r) = (-ln(1 + e^-3), -3 - ln(1 + e^-3)), so loss = ln(1 + e^-3) + 3/4.
    """
    terms = score_batch([[-3.0, -5.0]], [[-5.0, -1.0]], [[math.log(3), 0.0]])
    loss = InfoNCA(beta=0.5, tau=1.0)(terms).loss().item()
    assert loss == pytest.approx(math.log1p(math.exp(-3)) + 0.75)


def test_gradcheck_with_groups_of_different_size() -> None:
    terms = batch(
        [Reply([-1.0, -0.5], [-1.5, -0.1], reward=0.3), Reply([-2.0], [-1.0], reward=-1.0)],
        [Reply([-0.4], [-0.6], reward=2.0)],
        [Reply([-0.2 * k], [-0.3], reward=0.1 * k) for k in range(1, 6)],
    )
    assert gradcheck(InfoNCA(beta=0.7, tau=0.5), terms)


def test_infonca_with_two_responses_and_hard_rewards_is_dpo() -> None:
    pair = pair_batch([-3.0, -8.0], [-5.0, -2.0], [-7.0, -6.0], [-3.0, -4.0])
    hard = replace(pair, reward=pair.role.double())
    objective = InfoNCA(beta=0.3, tau=1e-4)
    assert objective(hard).loss().item() == pytest.approx(DPO(beta=0.3)(pair).loss().item())
    assert gradient(objective, hard) == pytest.approx(gradient(DPO(beta=0.3), pair))


def test_the_pair_form_is_dpo() -> None:
    pair = pair_batch([-3.0, -8.0], [-5.0, -2.0], [-7.0, -6.0], [-3.0, -4.0])
    assert InfoNCA(beta=0.3, form="pair")(pair).loss() == DPO(beta=0.3)(pair).loss()


def test_a_constant_on_all_log_ratios_changes_nothing() -> None:
    ref, rewards = [[-2.0, -2.0, -2.0]], [[1.0, 0.5, 0.0]]
    objective = InfoNCA(beta=0.5, tau=0.5)
    loss = objective(score_batch([[-1.0, -2.0, -3.0]], ref, rewards)).loss().item()
    shifted = objective(score_batch([[-8.0, -9.0, -10.0]], ref, rewards)).loss().item()
    assert shifted == pytest.approx(loss, rel=1e-14)


def test_the_initial_loss_is_the_mean_of_ln_k() -> None:
    """Groups of 2, 1 and 3: (ln 2 + 0 + ln 3) / 3."""
    terms = batch(*[[Reply([-1.0], reward=0.1 * k) for k in range(size)] for size in (2, 1, 3)])
    expected = (math.log(2) + math.log(3)) / 3
    assert InfoNCA().initial_loss(terms) == pytest.approx(expected)
    assert InfoNCA()(terms).loss().item() == pytest.approx(expected)


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Three groups of two from thu-ml/Noise-Contrastive-Alignment, temperature 1, bonus 0.01."""
    objective = InfoNCA(beta=0.1, tau=1.0, first_response_bonus=0.01)
    terms = score_batch(
        [
            [-5.568113645358681, -17.458329747928687],
            [-9.736148830153201, -19.536709307286806],
            [-6.215911843704502, -16.40080449885481],
        ],
        [
            [-5.373152267748408, -18.322076199325114],
            [-7.960994162162056, -22.743942853737124],
            [-6.798661975802144, -16.949149286277382],
        ],
        [[8.0, 5.0], [9.0, 7.0], [8.0, 5.0]],
    )
    output = objective(terms)
    assert output.loss().item() == pytest.approx(0.7827367680015805, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.7425095946724998, 0.9141106932987457, 0.6915900160334963], rel=1e-12
    )
    assert gradient(objective, terms)[:2] == pytest.approx(
        [-0.015982228517482485, 0.015982228517482485], rel=1e-12
    )
