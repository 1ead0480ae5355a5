"""Vectors of objectives on K scored responses and their pairwise forms: NCA and InfoNCA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alignment.objectives.base import GroupTerms, Objective, sum_tokens
from alignment.objectives.infonca import InfoNCA
from alignment.objectives.nca import NCA
from tests.conformance.case import Case
from tests.conformance.pairs import pair_terms, pair_values


def run_infonca(
    case: Case, *, beta: float, temperature_alpha: float, first_score_bonus: float = 0.01
) -> Mapping[str, Any]:
    """InfoNCA; the bonus is the source's constant where a case does not state it."""
    objective = InfoNCA(beta=beta, tau=temperature_alpha, first_response_bonus=first_score_bonus)
    return _group_values(case, objective)


def run_nca(
    case: Case, *, beta: float, temperature_alpha: float, first_score_bonus: float = 0.01
) -> Mapping[str, Any]:
    """NCA; the bonus is the source's constant where a case does not state it."""
    objective = NCA(beta=beta, tau=temperature_alpha, first_response_bonus=first_score_bonus)
    return _group_values(case, objective)


def run_nca_pair(case: Case, *, beta: float, loss_type: str = "nca_pair") -> Mapping[str, Any]:
    """Pairwise NCA and its biased variant, which TRL calls `bco_pair`."""
    biased = {"nca_pair": False, "biased_nca": True, "bco_pair": True}
    if loss_type not in biased:
        raise ValueError(f"params.loss_type `{loss_type}` is unknown: {', '.join(biased)}")
    objective = NCA(beta=beta, form="pair", biased=biased[loss_type])
    return pair_values(case, objective, pair_terms(case, reference=True))


def _group_values(case: Case, objective: Objective) -> Mapping[str, Any]:
    scores = case.floats("scores")  # (B, K)
    if case.level == "logits":
        policy, rows = case.token_logps("policy_logits", "labels")
        ref = case.token_logps("ref_logits", "labels").values
    else:
        policy, ref = case.floats("policy_logps").flatten(), case.floats("ref_logps").flatten()
        rows = torch.arange(scores.numel())
    terms = GroupTerms(
        logps=policy,
        ref_logps=ref.detach(),
        response_of_token=rows,
        group_of_response=torch.arange(len(scores)).repeat_interleave(scores.shape[1]),
        role=torch.zeros(scores.numel(), dtype=torch.int64),
        reward=scores.detach().flatten(),
    )
    output = objective(terms)
    return {
        "loss": output.loss(),
        "per_example": output.parts["per_example"],
        "model_rewards": output.parts["rewards"].view_as(scores),
        "policy_logps": sum_tokens(terms.logps, terms).view_as(scores),
        "ref_logps": sum_tokens(ref, terms).view_as(scores),
    }


OBJECTIVES = {"infonca_k": run_infonca, "nca_k": run_nca, "nca_pair": run_nca_pair}
