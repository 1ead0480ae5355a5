"""Vectors of ULMA and pointwise DPO: every response is a point with a score of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from alignment.objectives.base import GroupTerms, mean_tokens
from alignment.objectives.ulma import ULMA
from tests.conformance.case import Adapter, Case

DEMONSTRATION: dict[str, Literal["logloss", "beta_logloss", "pointwise_dpo", "token_mean"]] = {
    "logloss": "logloss",
    "beta_logloss": "beta_logloss",
    "pointwise_dpo": "pointwise_dpo",
    "shifted_ce_loss": "token_mean",
}


def _run(default: str) -> Adapter:
    def run(
        case: Case,
        *,
        loss_type: str = default,
        preference_loss_type: Literal["binary", "continuous"] = "binary",
        beta: float = 0.1,
        constant: float = 0.0,
    ) -> Mapping[str, Any]:
        if loss_type not in DEMONSTRATION:
            raise ValueError(f"params.loss_type `{loss_type}` is unknown")
        objective = ULMA(beta, constant, preference_loss_type, DEMONSTRATION[loss_type])
        score = case.floats("score").detach()
        if case.level == "logits":
            logps, rows = case.token_logps("policy_logits", "labels")
            ref_logps = case.token_logps("ref_logits", "labels").values
        else:
            # A mean over tokens stands for one token of a response.
            logps, ref_logps = case.floats("policy_logps"), case.floats("ref_logps")
            rows = torch.arange(len(score))
        terms = GroupTerms(
            logps=logps,
            ref_logps=ref_logps.detach(),
            response_of_token=rows,
            group_of_response=torch.arange(len(score)),
            role=torch.where(score == 1, 1, -1),
            reward=score,
        )
        output = objective(terms)
        demonstration, preference = (
            term.sums.sum() / term.counts.sum().clamp(min=1) for term in output.terms
        )
        return {
            "loss": output.loss(),
            "demonstration_loss": demonstration,
            "preference_loss": preference,
            "rewards": output.parts["rewards"],
            "policy_logps": mean_tokens(logps, terms),
            "ref_logps": mean_tokens(ref_logps, terms),
        }

    return run


OBJECTIVES = {"ulma": _run("logloss"), "pointwise_dpo": _run("pointwise_dpo")}
