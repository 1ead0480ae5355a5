from __future__ import annotations

import math

import pytest

from alignment.objectives.dpkd import DPKD
from alignment.objectives.dpo import DPO
from tests.objectives.batches import Reply, batch, gradcheck, pair_batch


def test_worked_numbers() -> None:
    """Mean log-ratios 2 (of 3 and 1) and -4 at beta 0.5: -log sigmoid(0.5 * 6)."""
    terms = batch(
        [
            Reply([-1.0, -2.0], teacher=[-4.0, -3.0], role=1),
            Reply([-5.0], teacher=[-1.0], role=-1),
        ]
    )
    expected = math.log1p(math.exp(-3.0))
    assert DPKD(beta=0.5)(terms).loss().item() == pytest.approx(expected)


def test_gradcheck() -> None:
    terms = batch(
        [
            Reply([-1.0, -2.0], teacher=[-4.0, -3.0], role=1),
            Reply([-5.0], teacher=[-1.0], role=-1),
        ],
        [
            Reply([-1.5], teacher=[-1.0], role=1),
            Reply([-0.5, -3.0, -2.0], teacher=[-1.0, -2.0, -2.0], role=-1),
        ],
    )
    assert gradcheck(DPKD(beta=0.7), terms)


def test_responses_of_one_token_make_it_dpo_with_the_teacher_as_reference() -> None:
    columns = ([-3.0, -8.0], [-5.0, -2.0], [-7.0, -6.0], [-3.0, -4.0])
    pair = pair_batch(*columns)
    taught = batch(
        *[
            (Reply([w], teacher=[tw], role=1), Reply([y], teacher=[ty], role=-1))
            for w, y, tw, ty in zip(*columns, strict=True)
        ]
    )
    dpkd, dpo = DPKD(beta=0.3)(taught), DPO(beta=0.3)(pair)
    assert dpkd.loss().item() == pytest.approx(dpo.loss().item(), rel=1e-14)


def test_a_teacher_that_is_the_student_gives_log_two() -> None:
    terms = batch([Reply([-1.0, -2.0], role=1), Reply([-3.0], role=-1)])
    assert DPKD()(terms).loss().item() == pytest.approx(math.log(2))


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Two pairs of `dpkd` from jongwooko/distillm-2, beta 0.1."""
    terms = batch(
        [
            Reply([-2.6416589744274854], teacher=[-2.388272234033046], role=1),
            Reply([-2.060262691210712], teacher=[-3.9282456229949205], role=-1),
        ],
        [
            Reply([-3.1185245838816797], teacher=[-2.7360456992765783], role=1),
            Reply([-2.5175014535602185], teacher=[-3.6048780313014213], role=-1),
        ],
    )
    output = DPKD(beta=0.1)(terms)
    assert output.loss().item() == pytest.approx(0.7870842647059786, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.8048304094577298, 0.7693381199542273], rel=1e-12
    )


def test_a_beta_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DPKD.beta is 0.0: it must be above 0"):
        DPKD(beta=0.0)
