"""Vectors of CLHA: groups of n candidates in list order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alignment.objectives.base import GroupTerms
from alignment.objectives.clha import CLHA
from tests.conformance.case import Case


def run(case: Case, *, margin: float = 3.0, sft_weight: float = 2.0) -> Mapping[str, Any]:
    """The release's loss; the weight of a case that states none is the release's default."""
    reward = case.floats("reward").detach()  # (B, n)
    count, size = reward.shape
    if case.level == "logits":
        logps, rows = case.token_logps("policy_logits", "labels")
    else:
        # A sum over tokens stands for as many equal tokens.
        lengths = case.ints("lengths").flatten()
        rows = torch.arange(len(lengths)).repeat_interleave(lengths)
        logps = (case.floats("policy_logps").flatten() / lengths)[rows]
    role = torch.zeros(count, size, dtype=torch.int64)
    role[torch.arange(count), case.ints("sft_index")] = 1
    terms = GroupTerms(
        logps=logps,
        response_of_token=rows,
        group_of_response=torch.arange(count).repeat_interleave(size),
        role=role.flatten(),
        reward=reward.flatten(),
    )
    output = CLHA(margin, sft_weight, order="data", largest_group=size)(terms)
    *ranks, likelihood = output.terms
    rank_loss = sum(term.sums.sum() / term.counts.sum().clamp(min=1) for term in ranks)
    return {
        "loss": output.loss(),
        "rank_loss": rank_loss,
        "sft_loss": sft_weight * likelihood.sums.sum() / likelihood.counts.sum(),
        "mean_logps": output.parts["mean_logps"].view_as(reward),
    }


OBJECTIVES = {"clha": run}
