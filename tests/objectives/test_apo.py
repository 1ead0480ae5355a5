from __future__ import annotations

import math

import pytest

from alignment.objectives.apo import APO
from tests.objectives.batches import (
    Reply,
    batch,
    chosen,
    gradcheck,
    gradient,
    pair_batch,
    rejected,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_worked_numbers_of_zero() -> None:
    """Log-ratios 4 and -2 at beta 0.5: (1 - s(2)) + s(-1)."""
    terms = pair_batch([-3.0], [-5.0], [-7.0], [-3.0])
    loss = APO(beta=0.5)(terms).loss().item()
    assert loss == pytest.approx((1 - sigmoid(2)) + sigmoid(-1))


def test_worked_numbers_of_down() -> None:
    """Log-ratios 4 and -2 at beta 0.5: s(2) + (1 - s(3))."""
    terms = pair_batch([-3.0], [-5.0], [-7.0], [-3.0])
    loss = APO(beta=0.5, variant="down")(terms).loss().item()
    assert loss == pytest.approx(sigmoid(2) + (1 - sigmoid(3)))


def test_worked_numbers_of_unpaired() -> None:
    """Log-ratios 4, -2, 2 at beta 0.5, weights 2 and 3: (2 s(-2) + 3 s(-1) + 3 s(1)) / 3."""
    objective = APO(beta=0.5, form="unpaired", desirable_weight=2.0, undesirable_weight=3.0)
    terms = batch(
        [chosen(-3.0, ref=[-7.0])], [rejected(-5.0, ref=[-3.0]), rejected(-1.0, ref=[-3.0])]
    )
    expected = (2 * sigmoid(-2) + 3 * sigmoid(-1) + 3 * sigmoid(1)) / 3
    assert objective(terms).loss().item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "objective",
    [APO(beta=0.7), APO(beta=0.7, variant="down"), APO(form="unpaired", desirable_weight=2.0)],
)
def test_gradcheck(objective: APO) -> None:
    terms = batch(
        [chosen(-1.0, -0.5, ref=[-1.5, -0.1]), rejected(-2.0, ref=[-1.0])],
        [rejected(-0.3, -0.9, ref=[-0.4, -2.0]), chosen(-1.1, ref=[-0.6])],
    )
    assert gradcheck(objective, terms)


def test_a_paired_loss_is_twice_the_unpaired_one_of_the_same_responses() -> None:
    terms = pair_batch([-3.0, -8.0], [-5.0, -2.0], [-7.0, -6.0], [-3.0, -4.0])
    unpaired = APO(form="unpaired")(terms).loss().item()
    assert APO()(terms).loss().item() == pytest.approx(2 * unpaired, rel=1e-14)


def test_zero_raises_the_chosen_side_and_down_lowers_it() -> None:
    terms = pair_batch([-3.0], [-5.0], [-3.5], [-4.0])
    zero, down = gradient(APO(), terms), gradient(APO(variant="down"), terms)
    assert zero[0] < 0 < zero[1]
    assert 0 < down[0] < down[1]


def test_one_class_alone_is_a_valid_unpaired_batch() -> None:
    """Two undesirable responses at the reference: 0.5 each."""
    output = APO(form="unpaired")(batch([rejected(-1.0)], [rejected(-2.0)]))
    assert output.loss().item() == 0.5
    assert output.metrics["rewards/chosen"].count.item() == 0


def test_the_initial_loss_of_the_unpaired_form_follows_weights_and_labels() -> None:
    """Weights 1.5, 0.5, 0.5: mean 5/6, halved."""
    objective = APO(form="unpaired", desirable_weight=1.5, undesirable_weight=0.5)
    terms = batch([chosen(-1.0)], [rejected(-2.0)], [rejected(-3.0)])
    assert objective.initial_loss(terms) == pytest.approx(5 / 12)


def test_an_unlabelled_response_is_refused() -> None:
    with pytest.raises(ValueError, match="every response needs a role"):
        APO(form="unpaired")(batch([Reply([-1.0])]))


def test_down_needs_pairs() -> None:
    with pytest.raises(ValueError, match=r"APO.variant is 'down', .* use form: pair"):
        APO(variant="down", form="unpaired")


def test_needs_follow_the_form() -> None:
    assert APO().needs == {"reference", "pairs"}
    assert APO(form="unpaired").needs == {"reference", "role"}


def test_the_values_of_trl_are_reproduced() -> None:
    """One pair each from TRL's `DPOTrainer` with `apo_zero` and `apo_down`, beta 0.1."""
    zero = pair_batch(
        [-34.809222945646006], [-52.488563490114515], [-35.64407693117418], [-49.86969350864977]
    )
    down = pair_batch(
        [-12.759768534454578], [-10.030546183587987], [-11.82219923836895], [-14.1745222286595]
    )
    assert APO()(zero).loss().item() == pytest.approx(0.9140406633305734, rel=1e-12)
    assert gradient(APO(), zero) == pytest.approx(
        [-0.024956489228879997, 0.024576197684506897], rel=1e-12
    )
    assert APO(variant="down")(down).loss().item() == pytest.approx(1.100951677103664, rel=1e-12)
    assert gradient(APO(variant="down"), down) == pytest.approx(
        [0.0014920237127308382, 0.02345311691565328], rel=1e-12
    )


def test_the_values_of_trl_unpaired_are_reproduced() -> None:
    """Four responses from TRL's `KTOTrainer` with `apo_zero_unpaired`, weights 1.5 and 0.5."""
    objective = APO(form="unpaired", desirable_weight=1.5, undesirable_weight=0.5)
    terms = batch(
        [rejected(-17.203130894163266, ref=[-18.11003970721807])],
        [chosen(-5.517854985209372, ref=[-5.261147899901734])],
        [rejected(-23.44927223729187, ref=[-22.21567632205017])],
        [rejected(-12.168824516335448, ref=[-14.560189659393455])],
    )
    assert objective(terms).loss().item() == pytest.approx(0.3838261456159769, rel=1e-12)
    assert gradient(objective, terms) == pytest.approx(
        [0.003118583144983939, -0.009373455672875869, 0.0031131413468536377, 0.003080745616815287],
        rel=1e-12,
    )
