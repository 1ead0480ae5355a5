from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment.objectives.adpa import ADPA
from alignment.objectives.base import GroupTerms
from tests.objectives.batches import Reply, batch
from tests.objectives.distillation import gradcheck, logits, one_token_pairs, score

# Advantages of samples 0.2, and 0.4 and 0.6; likelihood of the chosen tokens 1 and 3.
PAIRS = [
    (Reply([-1.0], role=1), Reply([-2.0], ref=[-1.0], role=-1)),
    (Reply([-3.0], role=1), Reply([-1.0, -1.0], ref=[-2.0, -1.0], role=-1)),
]


def terms_of(*groups: Any) -> GroupTerms:
    column = torch.tensor([0.0, 0.2, 0.0, 0.4, 0.6], dtype=torch.float64)
    terms = batch(*groups)
    return replace(terms, divergences=column[: len(terms.logps), None])


def test_worked_numbers() -> None:
    """(1 + 3) / 2 - 1.6 * (0.2 + 0.4 + 0.6) / 3."""
    assert ADPA()(terms_of(*PAIRS)).loss().item() == pytest.approx(2 - 1.6 * 0.4)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        # Ratios of the samples -1 and 1.
        ("release", 0.4 * (math.exp(-1) + math.e) / 2),
        ("sequence", (0.2 * math.exp(-1) + math.e) / 3),
    ],
)
def test_worked_numbers_of_importance_weights(importance: Any, expected: float) -> None:
    objective = ADPA(sft_weight=0.0, importance_sampling=importance)
    assert "reference" in objective.needs
    assert objective(terms_of(*PAIRS)).loss().item() == pytest.approx(-1.6 * expected)


def test_the_penalty_raises_the_likelihood_of_samples() -> None:
    """Ratios -1 and 1 have the mean 0; of the first alone 1."""
    objective = ADPA(sft_weight=0.0, adpa_weight=0.0, kl_penalty_weight=0.5)
    assert "reference" in objective.needs
    assert objective(terms_of(*PAIRS)).loss().item() == 0
    assert objective(terms_of(PAIRS[0])).loss().item() == 0.5


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("clip", [True, False])
def test_gradcheck_through_the_expectation(top_k: int | None, clip: bool) -> None:
    assert gradcheck(ADPA(sft_weight=0.3, top_k=top_k, clip_advantage=clip))


def test_the_loss_is_the_published_sum_over_the_vocabulary() -> None:
    student, teacher, second = (logits(seed) for seed in range(3))
    advantage = teacher.log_softmax(1) - second.log_softmax(1)
    per_token = (student.softmax(1) * advantage).sum(1)
    samples = torch.cat([per_token[2:3], per_token[4:7]])  # of the pairs' 2 + 1 and 1 + 3 tokens
    loss = score(ADPA(sft_weight=0.0), student, teacher, second=second).loss()
    assert loss.item() == pytest.approx(-1.6 * samples.mean().item(), rel=1e-12)


def test_teachers_that_agree_teach_nothing() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    loss = score(ADPA(sft_weight=0.0), student, teacher, second=teacher).loss()
    (grad,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert grad.abs().max() < 1e-15


def test_what_is_clipped_never_punishes() -> None:
    """Only rewards are left, so the loss cannot be above zero."""
    student, teacher, second = (logits(seed) for seed in range(3))
    for seed in range(3, 8):
        loss = score(
            ADPA(sft_weight=0.0, clip_advantage=True), student, teacher, second=logits(seed)
        ).loss()
        assert loss <= 0
    assert score(ADPA(sft_weight=0.0), second, teacher, second=second).loss() > 0


def test_only_samples_are_compared() -> None:
    (spec,) = ADPA().divergences(one_token_pairs([[0.2, 0.6]]))
    assert spec.where is not None
    assert spec.where.tolist() == [False, True]


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Their likelihood, advantage and mean importance weight give their loss; released weights."""
    ratio = math.log(1.0222328423150746)
    pair = (
        Reply([-2.239958435065031], role=1),
        Reply([-1.0 + ratio], ref=[-1.0], role=-1),
    )
    column = torch.tensor([[0.0], [0.10890316545558837]], dtype=torch.float64)
    terms = replace(batch(pair), divergences=column)
    objective = ADPA(top_k=4, clip_advantage=True, importance_sampling="release")
    assert objective(terms).loss().item() == pytest.approx(2.061839407287791, rel=1e-12)
