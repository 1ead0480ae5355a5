from __future__ import annotations

import math

import pytest

from alignment.objectives.ampo import AMPO
from tests.objectives.batches import Reply, batch, gradcheck, gradient


def reply(logp: float, reward: float, role: int = 0, tokens: int = 1) -> Reply:
    return Reply([logp / tokens] * tokens, reward=reward, role=role)


GROUP = [reply(-1, 2, 1), reply(-2, 0, -1), reply(-3, 1), reply(-4, 1, -1, tokens=2)]


def test_worked_numbers() -> None:
    """Scores at alpha 0.5, mean reward 1: -0.5, -2.5 and -4; the third is not selected."""
    weights = [math.exp(score) for score in (-0.5, -2.5, -4)]
    loss = AMPO(alpha=0.5)(batch(GROUP)).loss().item()
    assert loss == pytest.approx(-math.log(weights[0] / sum(weights)))


def test_worked_numbers_per_token_with_a_margin() -> None:
    """Twice the log-probs per token -1, -2, -2, rewards less 1 halved, the positive less 0.25."""
    weights = [math.exp(score) for score in (-2 + 0.5 - 0.25, -4 - 0.5, -4)]
    objective = AMPO(alpha=0.5, length_normalised=True, beta=2.0, gamma=0.25)
    assert objective(batch(GROUP)).loss().item() == pytest.approx(
        -math.log(weights[0] / sum(weights))
    )


@pytest.mark.parametrize("kwargs", [{}, {"length_normalised": True, "beta": 2.0, "gamma": 1.0}])
def test_gradcheck(kwargs: dict[str, float]) -> None:
    assert gradcheck(AMPO(**kwargs), batch(GROUP, GROUP[::-1], [reply(-1, 1), reply(-2, 0)]))  # type: ignore[arg-type]


def test_without_roles_the_best_is_the_positive_and_all_others_are_negatives() -> None:
    plain = [reply(-1, 2), reply(-2, 0), reply(-3, 1)]
    sided = [reply(-1, 2, 1), reply(-2, 0, -1), reply(-3, 1, -1)]
    assert AMPO()(batch(plain)).loss() == AMPO()(batch(sided)).loss()


def test_the_order_of_responses_does_not_matter_nor_does_a_constant_reward() -> None:
    shifted = [Reply(r.logps, reward=r.reward + 3, role=r.role) for r in GROUP[::-1]]
    losses = [AMPO()(batch(group)).loss().item() for group in (GROUP, shifted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_several_positives_share_the_numerator() -> None:
    """All selected are positives: nothing is left to lose."""
    assert AMPO()(batch([reply(-1, 2, 1), reply(-5, 0, 1)])).loss().item() == pytest.approx(0)


def test_long_responses_do_not_overflow() -> None:
    loss = AMPO()(batch([reply(-2000, 1, 1), reply(-1000, 0, -1)])).loss().item()
    assert loss == pytest.approx(999)


def test_the_values_of_the_published_formula_are_reproduced() -> None:
    """The first group of a case of the reference vectors, alpha 1; the gradient is halved there."""
    terms = batch(
        [
            reply(logp, reward, role)
            for logp, reward, role in zip(
                [-1.8113848924725127, -9.190541224018752, -1.3312216000910932, -7.145544334633604],
                [0.964680077917162, -0.2666422810151507, 0.8695575884557639, 1.3033021387712047],
                [-1, -1, -1, 1],
                strict=True,
            )
        ]
    )
    assert AMPO()(terms).loss().item() == pytest.approx(5.902433948658332, rel=1e-12)
    assert [g / 2 for g in gradient(AMPO(), terms)] == pytest.approx(
        [0.20188768563690895, 3.678124687778486e-05, 0.2967091404869489, -0.49863360737073564],
        rel=1e-9,
    )
