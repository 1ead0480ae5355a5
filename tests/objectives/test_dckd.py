from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignment.objectives.dckd import DCKD
from alignment.objectives.kd import KD
from tests.objectives.batches import Reply, batch
from tests.objectives.distillation import (
    VOCABULARY,
    assert_nothing_to_learn_from_itself,
    gradcheck,
    logits,
    one_token_pairs,
    score,
)


def test_worked_numbers() -> None:
    """2 * mean of 1 and 3, and 0.5 times 0.4 of 0.3 and 0.2 of 0.5."""
    terms = one_token_pairs([[0.2, 0.6], [0.4, 0.4]], [[-1.0, -9.0], [-3.0, -9.0]])
    objective = DCKD(
        sft_weight=2.0, distillation_weight=0.5, chosen_weight=0.4, rejected_weight=0.2
    )
    assert objective(terms).loss().item() == pytest.approx(4 + 0.5 * (0.12 + 0.1))


@pytest.mark.parametrize("top_k", [None, 4])
def test_gradcheck_through_the_divergence(top_k: int | None) -> None:
    assert gradcheck(DCKD(chosen_weight=0.7, rejected_weight=0.4, top_k=top_k))


def test_the_whole_vocabulary_in_buckets_is_the_full_divergence() -> None:
    student, teacher = logits(0), logits(1)
    full, buckets = (score(DCKD(top_k=k), student, teacher).loss() for k in (None, VOCABULARY))
    assert buckets.item() == pytest.approx(full.item(), abs=1e-6)


def test_on_chosen_responses_alone_it_is_forward_kl_by_tokens() -> None:
    """Responses of one token each, so that KD's means over responses are means over tokens."""
    terms = one_token_pairs([[0.2, 0.6], [0.4, 0.4]])
    objective = DCKD(sft_weight=0.0, chosen_weight=1.0, rejected_weight=0.0)
    assert objective(terms).loss().item() == pytest.approx(KD()(terms).loss().item())


def test_means_are_over_the_tokens_of_a_side() -> None:
    """Chosen tokens 0.1, 0.3 and 0.8: 0.4, not the mean 0.5 of the responses' 0.2 and 0.8."""
    terms = batch(
        [Reply([-1.0, -1.0], role=1), Reply([-1.0], role=-1)],
        [Reply([-1.0], role=1), Reply([-1.0], role=-1)],
    )
    column = torch.tensor([0.1, 0.3, 9.0, 0.8, 9.0], dtype=torch.float64)
    output = DCKD()(replace(terms, divergences=column[:, None]))
    mean = output.metrics["divergences/chosen"]
    assert (mean.sum / mean.count).item() == pytest.approx(0.4)


def test_a_teacher_that_is_the_student_gives_zero_loss_and_zero_gradient() -> None:
    assert_nothing_to_learn_from_itself(DCKD(sft_weight=0.0))


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Released weights: their likelihood and both of their divergences give their loss."""
    terms = one_token_pairs(
        [[1.0694598325273648, 1.0960620437477913]], [[-1.7533286510900286, 0.0]]
    )
    assert DCKD(top_k=4)(terms).loss().item() == pytest.approx(1.9698808387175442, rel=1e-12)
