"""What holds for every objective whose log-probs are only logged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignment.objectives.base import Objective
from alignment.objectives.distillm import DistiLLM
from alignment.objectives.distillm2 import DistiLLM2
from alignment.objectives.gkd import GKD
from alignment.objectives.kd import KD
from tests.objectives.distillation import one_token_pairs


@pytest.mark.parametrize(
    "objective", [KD(), GKD(), DistiLLM(), DistiLLM2(), DistiLLM2(form="release")], ids=repr
)
def test_neither_divergences_nor_loss_read_log_probs(objective: Objective) -> None:
    blank = one_token_pairs([[0.0, 0.0]] * 2, logps=[[0.0, 0.0]] * 2)
    terms = one_token_pairs(
        [[0.0, 0.0]] * 2, [[-1.0, -2.0], [-3.0, -0.1]], [[-0.5, -1.0], [-2.0, -4.0]]
    )
    assert objective.logps_use(terms) == "logged"
    specs = objective.divergences(terms)
    for spec, other in zip(specs, objective.divergences(blank), strict=True):
        assert torch.equal(spec.skew, other.skew)
        assert not spec.skew.requires_grad
    given = torch.rand(4, len(specs), dtype=torch.float64).requires_grad_()
    loss = objective(replace(terms, divergences=given)).loss()
    assert torch.equal(loss, objective(replace(blank, divergences=given)).loss())
    (grad,) = torch.autograd.grad(loss, terms.logps, allow_unused=True)
    assert grad is None
