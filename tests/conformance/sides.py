"""Vectors of objectives on ragged groups whose responses have sides: D2O and AMPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignment.objectives.ampo import AMPO
from alignment.objectives.base import GroupTerms, sum_tokens
from alignment.objectives.d2o import D2O
from tests.conformance.case import Case


def run_d2o(case: Case, *, alpha: float = 0.1, beta: float = 0.1) -> Mapping[str, Any]:
    """D2O; a case with `ref_plus_logps` has a reference of its own for negatives."""
    two = "ref_plus_logps" in case.inputs
    second = case.floats("ref_plus_logps").detach() if two else None
    terms = _terms(case, ref_logps=_flat(case, "ref").detach(), second_ref_logps=second)
    output = D2O(alpha=alpha, beta=beta, references="two" if two else "one")(terms)
    return {
        "loss": output.loss(),
        "per_example": output.parts["per_example"],
        "policy_logps": sum_tokens(terms.logps, terms),
        "ref_logps": sum_tokens(_flat(case, "ref"), terms),
    }


def run_ampo(case: Case, *, alpha: float) -> Mapping[str, Any]:
    """AMPO's loss as quoted."""
    terms = _terms(case, reward=case.floats("reward").detach())
    output = AMPO(alpha=alpha)(terms)
    return {
        "loss": output.loss(),
        "per_example": output.parts["per_example"],
        "scores": output.parts["scores"],
        "policy_logps": sum_tokens(terms.logps, terms),
    }


def _terms(case: Case, **values: Any) -> GroupTerms:
    rows = torch.arange(len(case.ints("role")))
    if case.level == "logits":
        rows = case.token_logps("policy_logits", "labels").rows
    return GroupTerms(
        logps=_flat(case, "policy"),
        response_of_token=rows,
        group_of_response=case.ints("group_of_response"),
        role=case.ints("role"),
        **values,
    )


def _flat(case: Case, model: str) -> Tensor:
    """(N,) log-probs; at `logps` level a response is one token."""
    if case.level == "logits":
        return case.token_logps(f"{model}_logits", "labels").values
    return case.floats(f"{model}_logps")


OBJECTIVES = {"d2o": run_d2o, "ampo": run_ampo}
