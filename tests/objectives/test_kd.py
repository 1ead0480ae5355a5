from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignment.objectives.kd import KD
from tests.objectives.batches import Reply, batch
from tests.objectives.distillation import (
    assert_nothing_to_learn_from_itself,
    gradcheck,
    logits,
    one_token_pairs,
    score,
)


def test_worked_numbers() -> None:
    """Only the chosen responses count: (0.2 + 0.1) / 2."""
    terms = one_token_pairs([[0.2, 0.6], [0.1, 0.3]])
    assert KD()(terms).loss().item() == pytest.approx(0.15)


def test_the_mean_is_over_chosen_responses_in_groups_of_any_size() -> None:
    """Responses of 2 and 1 tokens: ((0.1 + 0.3) / 2 + 0.6) / 2 = 0.4; the third is rejected."""
    terms = batch([Reply([-1.0, -1.0], role=1), Reply([-1.0], role=1)], [Reply([-1.0], role=-1)])
    column = torch.tensor([0.1, 0.3, 0.6, 9.0], dtype=torch.float64)
    output = KD()(replace(terms, divergences=column[:, None]))
    assert output.loss().item() == pytest.approx(0.4)


def test_rejected_responses_cost_nothing() -> None:
    (spec,) = KD().divergences(one_token_pairs([[0.2, 0.6]]))
    assert spec.where is not None
    assert spec.where.tolist() == [True, False]


def test_gradcheck_through_the_divergence() -> None:
    assert gradcheck(KD())


def test_the_divergence_is_the_cross_entropy_less_the_teachers_entropy() -> None:
    student, teacher = logits(0), logits(1)
    p, log_p, log_q = teacher.softmax(1), teacher.log_softmax(1), student.log_softmax(1)
    per_token = (p * log_p).sum(1) - (p * log_q).sum(1)
    chosen = [per_token[0:2].mean().item(), per_token[3:4].mean().item()]
    output = score(KD(), student, teacher)
    assert output.parts["per_example"].tolist() == pytest.approx(chosen, rel=1e-12)


def test_a_teacher_that_is_the_student_gives_zero_loss_and_zero_gradient() -> None:
    assert_nothing_to_learn_from_itself(KD())


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Two pairs of `kd` from jongwooko/distillm-2."""
    terms = one_token_pairs([[0.2872292329114711, 0.0], [0.34667624300999006, 0.0]])
    assert KD()(terms).loss().item() == pytest.approx(0.3169527379607306, rel=1e-12)
