"""Vectors of objectives on pairs and single responses with a reference: DPO, APO, pairwise NCA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alignment.objectives.apo import APO
from alignment.objectives.base import GroupTerms, Objective
from alignment.objectives.dpo import DPO
from tests.conformance.case import Adapter, Case, TokenLogps, merge_responses


def pair_terms(case: Case, *, reference: bool) -> GroupTerms:
    """Groups of two, chosen then rejected, from either level of a case on pairs.

    At `logps` level a response is one token, whose log-prob is that of the whole response.
    """
    policy, response_of_token = _pair_tokens(case, "policy")
    ref_logps = _pair_tokens(case, "ref")[0].detach() if reference else None
    count = len(case.floats(f"policy_chosen_{case.level}"))
    return GroupTerms(
        logps=policy,
        ref_logps=ref_logps,
        response_of_token=response_of_token,
        group_of_response=torch.arange(count).repeat_interleave(2),
        role=torch.tensor([1, -1]).repeat(count),
    )


def pair_values(case: Case, objective: Objective, terms: GroupTerms) -> Mapping[str, Any]:
    """What the vectors of pairs list, from an objective with `per_example` and `rewards` parts."""
    output = objective(terms)
    rewards = output.parts["rewards"]
    return {
        "loss": output.loss(),
        "per_example": output.parts["per_example"],
        "chosen_rewards": rewards[0::2],
        "rejected_rewards": rewards[1::2],
        "metrics": {name: mean.sum / mean.count for name, mean in output.metrics.items()},
    }


def _pair_tokens(case: Case, model: str) -> tuple[torch.Tensor, torch.Tensor]:
    parts = []
    for side, name in enumerate(("chosen", "rejected")):
        if case.level == "logits":
            tokens = case.token_logps(f"{model}_{name}_logits", f"{name}_labels")
        else:
            values = case.floats(f"{model}_{name}_logps")
            tokens = TokenLogps(values, torch.arange(len(values)))
        parts.append(TokenLogps(tokens.values, 2 * tokens.rows + side))
    return merge_responses(parts)


def _run_pairs(default: str) -> Adapter:
    """An adapter whose loss is `params.loss_type`, or the file's own where a case names none."""

    def run(case: Case, *, beta: float, loss_type: str = default) -> Mapping[str, Any]:
        objectives: dict[str, Objective] = {
            "sigmoid": DPO(beta=beta),
            "apo_zero": APO(beta=beta, variant="zero"),
            "apo_down": APO(beta=beta, variant="down"),
        }
        if loss_type not in objectives:
            raise ValueError(f"params.loss_type `{loss_type}` is unknown: {', '.join(objectives)}")
        return pair_values(case, objectives[loss_type], pair_terms(case, reference=True))

    return run


def run_unpaired(
    case: Case,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss_type: str = "apo_zero_unpaired",
) -> Mapping[str, Any]:
    """Unpaired APO-zero: every example is a group of one response."""
    if loss_type != "apo_zero_unpaired":
        raise ValueError(f"params.loss_type `{loss_type}` is unknown: apo_zero_unpaired")
    if case.level == "logits":
        policy, rows = case.token_logps("policy_logits", "labels")
        ref = case.token_logps("ref_logits", "labels").values
    else:
        policy, ref = case.floats("policy_logps"), case.floats("ref_logps")
        rows = torch.arange(len(policy))
    label = case.bools("label")
    objective = APO(
        beta=beta,
        form="unpaired",
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    terms = GroupTerms(
        logps=policy,
        ref_logps=ref.detach(),
        response_of_token=rows,
        group_of_response=torch.arange(len(label)),
        role=torch.where(label, 1, -1),
    )
    output = objective(terms)
    return {
        "loss": output.loss(),
        "per_example": output.parts["per_example"],
        "rewards": output.parts["rewards"],
    }


OBJECTIVES: Mapping[str, Adapter] = {
    "dpo": _run_pairs("sigmoid"),
    "apo_zero": _run_pairs("apo_zero"),
    "apo_down": _run_pairs("apo_down"),
    "apo_zero_unpaired": run_unpaired,
}
