from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.objectives.awr import AWR
from alignment.objectives.conditional import Conditional
from tests.objectives.batches import Reply, batch, gradcheck, gradient

TERMS = [Reply([-1.0, -2.0], score=[0.5, 0.25], values=[-0.25, -0.75])]


def test_worked_numbers() -> None:
    """Rewards -0.5 and -0.25, advantages -0.25 and 0.5, weights e^-0.5 and e at beta 0.5.

    0.4 (e^-0.5 + 2 e) / 2 + 0.6 (0.0625 + 0.25) / 2.
    """
    loss = AWR(alpha=0.4, beta=0.5)(batch(TERMS)).loss().item()
    assert loss == pytest.approx(0.2 * (math.exp(-0.5) + 2 * math.e) + 0.3 * 0.3125)


@pytest.mark.parametrize(
    ("kwargs", "weights"),
    [
        ({"baseline": "none"}, [math.exp(-0.5), math.exp(-0.25)]),
        ({"baseline": "fixed", "fixed_value": -1.0}, [math.exp(0.5), math.exp(0.75)]),
        ({"weight_max": 1.2}, [math.exp(-0.25), 1.2]),
        ({"normalize_advantage": True}, [math.exp(-math.sqrt(0.5)), math.exp(math.sqrt(0.5))]),
    ],
)
def test_worked_weights(kwargs: dict[str, Any], weights: list[float]) -> None:
    """The gradient by a log-prob is minus its weight over the number of tokens."""
    found = gradient(AWR(alpha=1.0, **kwargs), batch(TERMS))
    assert found == pytest.approx([-weight / 2 for weight in weights], rel=1e-6)


def test_gradcheck_of_log_probs_and_values() -> None:
    terms = batch(TERMS, [Reply([-0.3], score=[0.9], values=[-0.1])])
    assert gradcheck(AWR(baseline="fixed"), terms)

    def loss(values: Tensor) -> Tensor:
        # Weights hold the value constant, so only the error can be checked by differences.
        return AWR(alpha=0.0)(replace(terms, values=values)).loss()

    assert terms.values is not None
    assert torch.autograd.gradcheck(loss, (terms.values.requires_grad_(),))


def test_without_differences_in_score_it_is_the_weighted_likelihood() -> None:
    terms = batch([Reply([-1.0, -2.0], score=[0.0, 0.0])])
    regression = AWR(alpha=1.0, baseline="none")
    assert regression(terms).loss() == Conditional()(terms).loss()


def test_cut_values_have_no_gradient() -> None:
    terms = batch([Reply([-1.0, -2.0], score=[0.5, 0.25], values=[0.5, -0.75])])
    assert terms.values is not None
    values = terms.values.requires_grad_()
    loss = AWR(clip_value=True)(replace(terms, values=values)).loss()
    (grad,) = torch.autograd.grad(loss, values)
    assert grad[0] == 0
    assert grad[1] != 0


def test_a_value_head_is_asked_for_where_something_reads_it() -> None:
    assert "values" in AWR().needs
    assert "values" in AWR(alpha=1.0).needs
    assert "values" not in AWR(alpha=1.0, baseline="none").needs
    with pytest.raises(ValueError, match="AWR trains a value per token, but `values` is missing"):
        AWR()(replace(batch(TERMS), values=None))


def test_the_values_of_the_authors_code_are_reproduced() -> None:
    """Their tokens with a value head, alpha 0.3 and beta 0.5."""
    logps = [
        -1.9461099983694308,
        -0.6585086123520494,
        -1.2852539836109178,
        -0.23242652596939178,
        -2.8869631108799334,
        -1.497719495944044,
        -0.22879038263681295,
        -0.78855467328475,
        -0.03199572795432275,
        -1.8971910741861104,
    ]
    scores = [
        0.10407014275511706,
        0.4229435571963628,
        0.5876881225649301,
        0.18990664919624078,
        0.8544101064109805,
        0.06847463829198341,
        0.05836330967818182,
        0.2692134339345982,
        0.9311463757586964,
        0.9968837807263154,
    ]
    values = [
        -0.779764750200915,
        -0.2656283712330343,
        -0.3630582583408668,
        -0.679561486292265,
        -0.4447987291863267,
        -0.025463396991873055,
        -0.6737553276318803,
        -0.8126016492366905,
        -0.3623390857075933,
        -0.39928061401428927,
    ]
    terms, objective = batch([Reply(logps, score=scores, values=values)]), AWR(alpha=0.3, beta=0.5)
    assert objective(terms).loss().item() == pytest.approx(0.6343926139917908, rel=1e-12)
    assert gradient(objective, terms) == pytest.approx(
        [
            -0.11588364143007666,
            -0.02190176023753241,
            -0.0191430103307086,
            -0.07987852601244991,
            -0.013223223333571421,
            -0.027527208046433722,
            -0.10271738864713155,
            -0.08894105191594684,
            -0.009617485053605244,
            -0.009079245080458194,
        ],
        rel=1e-9,
    )
