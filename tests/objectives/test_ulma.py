from __future__ import annotations

import math
from typing import Any

import pytest

from alignment.objectives.ulma import ULMA
from tests.objectives.batches import Reply, batch, gradcheck, gradient


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def point(*logps: float, ref: float, z: float) -> Reply:
    """One response; `ref` is the reference's log-prob of each token."""
    return Reply(logps, [ref] * len(logps), role=1 if z == 1 else -1, reward=z)


# Mean log-probs -2 and -1.5 of demonstrations, -1 of the other; log-ratios per token 1, 0.5, 2.
POINTS = [
    [point(-1.0, -3.0, ref=-3.0, z=1)],
    [point(-1.5, ref=-2.0, z=1)],
    [point(-1.0, ref=-3.0, z=0)],
]


@pytest.mark.parametrize(
    ("kwargs", "demonstration"),
    [
        ({}, 1.75),
        ({"demonstration": "beta_logloss"}, 0.5 * 1.75),
        ({"demonstration": "token_mean"}, 5.5 / 3),
        ({"demonstration": "pointwise_dpo"}, -(log_sigmoid(0.5) + log_sigmoid(0.25)) / 2),
    ],
)
def test_worked_numbers_of_each_demonstration(kwargs: dict[str, Any], demonstration: float) -> None:
    """The other response adds -ls(-0.5 * 2)."""
    loss = ULMA(beta=0.5, **kwargs)(batch(*POINTS)).loss().item()
    assert loss == pytest.approx(demonstration - log_sigmoid(-1.0))


def test_a_continuous_label_is_met_by_a_square() -> None:
    """(0.25 - 0.5 * 2 - 0.1)^2, and the mean of the demonstrations' 2 and 1.5."""
    points = [*POINTS[:2], [point(-1.0, ref=-3.0, z=0.25)]]
    objective = ULMA(beta=0.5, constant=0.1, preference="continuous")
    assert objective(batch(*points)).loss().item() == pytest.approx(1.75 + 0.85**2)


@pytest.mark.parametrize("preference", ["binary", "continuous"])
@pytest.mark.parametrize(
    "demonstration", ["logloss", "beta_logloss", "pointwise_dpo", "token_mean"]
)
def test_gradcheck(preference: Any, demonstration: Any) -> None:
    objective = ULMA(0.7, 0.2, preference, demonstration)
    assert gradcheck(objective, batch(*POINTS, [point(-1.0, -0.3, ref=-0.5, z=0.4)]))


def test_a_class_that_is_missing_contributes_nothing() -> None:
    alone = ULMA()(batch(*POINTS[:2])).loss().item()
    assert alone == pytest.approx(1.75)


def test_how_often_a_class_occurs_does_not_matter() -> None:
    once, twice = batch(*POINTS), batch(*POINTS, POINTS[2])
    assert ULMA()(once).loss().item() == pytest.approx(ULMA()(twice).loss().item())


def test_at_the_start_pointwise_dpo_is_known() -> None:
    """Two classes, each -ls(0)."""
    start = [[point(-1.0, ref=-1.0, z=z)] for z in (0, 1)]
    objective = ULMA(demonstration="pointwise_dpo")
    assert objective.initial_loss(batch(*start)) == pytest.approx(2 * math.log(2))
    assert ULMA().initial_loss(batch(*start)) is None
    assert ULMA().initial_loss(batch(start[0])) == pytest.approx(math.log(2))


def test_the_values_of_the_authors_code_are_reproduced() -> None:
    """Their ULMA, log loss and binary labels: five points with mean log-probs."""
    logps = [
        *(-1.2302247497005943, -0.7072717591100264, -0.3016828959009351),
        *(-1.5586915652095816, -3.2745002447428346),
    ]
    refs = [
        *(-1.6131957561907706, -0.3452626575359998, -0.18090005608589896),
        *(-2.3387183009133112, -2.616301141649476),
    ]
    labels = [1.0, 0.0, 1.0, 0.0, 0.0]
    rows = zip(logps, refs, labels, strict=True)
    terms = batch(*[[point(p, ref=r, z=z)] for p, r, z in rows])
    assert ULMA()(terms).loss().item() == pytest.approx(1.455586511725731, rel=1e-12)
    assert gradient(ULMA(), terms) == pytest.approx(
        [-0.5, 0.016365025356528447, -0.5, 0.017316359562940302, 0.016118365348480417], rel=1e-12
    )
