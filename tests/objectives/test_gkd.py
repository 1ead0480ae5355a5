from __future__ import annotations

import pytest
import torch

from alignment.objectives.gkd import GKD
from alignment.objectives.kd import KD
from tests.objectives.distillation import (
    assert_nothing_to_learn_from_itself,
    gradcheck,
    logits,
    one_token_pairs,
    score,
)


def test_worked_numbers() -> None:
    """Both responses count in full: (0.2 + 0.6 + 0.1 + 0.3) / 2 pairs."""
    terms = one_token_pairs([[0.2, 0.6], [0.1, 0.3]])
    assert GKD()(terms).loss().item() == pytest.approx(0.6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_gradcheck_through_the_divergence(beta: float) -> None:
    assert gradcheck(GKD(beta=beta))


def test_with_even_weights_teacher_and_student_may_change_places() -> None:
    one = score(GKD(beta=0.5), logits(0), logits(1)).loss().item()
    other = score(GKD(beta=0.5), logits(1), logits(0)).loss().item()
    assert one == pytest.approx(other, rel=1e-14)


def test_a_small_beta_is_like_the_forward_kl() -> None:
    """The divergence over beta goes to KL(p, q), with an error of the order of beta."""
    small = score(GKD(beta=0.01), logits(0), logits(1)).parts["divergences"][0::2] / 0.01
    forward = score(KD(), logits(0), logits(1)).parts["divergences"][0::2]
    torch.testing.assert_close(small, forward, rtol=0.1, atol=0)


def test_a_teacher_that_is_the_student_gives_zero_loss_and_zero_gradient() -> None:
    assert_nothing_to_learn_from_itself(GKD())


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Two pairs of `gkd` from jongwooko/distillm-2."""
    terms = one_token_pairs(
        [[0.03299663243860447, 0.024764552395623324], [0.04453093712567485, 0.025549974313670773]]
    )
    output = GKD()(terms)
    assert output.loss().item() == pytest.approx(0.0639210481367867, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.05776118483422779, 0.07008091143934563], rel=1e-12
    )


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_hyper_parameters_out_of_range_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"GKD.beta is .*: it must be at least 0.01"):
        GKD(beta=beta)
