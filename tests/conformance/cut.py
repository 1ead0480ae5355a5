"""Vectors of CUT: two passes over the same responses, with and without the judgment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alignment.objectives.base import GroupTerms, LossTerm
from alignment.objectives.cut import CUT
from tests.conformance.case import Case, TokenLogps, merge_responses


def run(
    case: Case, *, threshold: float = 1.1, weight_unlike: float | None = None
) -> Mapping[str, Any]:
    """The release's loss. An example is a group: its plain view and, if judged, the judged view.

    The positive half holds the judged view where there is one and the plain view elsewhere.
    """
    has_judgment = case.bools("has_judgment")  # (B,)
    sizes = torch.where(has_judgment, 2, 1)
    first = sizes.cumsum(0) - sizes  # index of each example's plain view
    positive = case.token_logps("logits_pos", "labels_pos")
    negative = case.token_logps("logits_neg", "labels_neg")
    logps, response_of_token = merge_responses(
        [
            TokenLogps(positive.values, (first + has_judgment.long())[positive.rows]),
            TokenLogps(negative.values, first[negative.rows]),
        ]
    )
    count = int(sizes.sum())
    twin = torch.full((count,), -1)
    twin[first[has_judgment] + 1] = first[has_judgment]
    if "weight_unlike" in case.inputs:
        weights = case.floats("weight_unlike").detach()
    else:
        weights = torch.full((len(sizes),), float(weight_unlike or 0.0), dtype=case.dtype)
    terms = GroupTerms(
        logps=logps,
        response_of_token=response_of_token,
        group_of_response=torch.arange(len(sizes)).repeat_interleave(sizes),
        role=torch.zeros(count, dtype=torch.int64),
        twin=twin,
        weight=weights.repeat_interleave(sizes),
    )
    objective = CUT(
        threshold=threshold, weight=1.0, dynamic_weight="constant", normalisation="release"
    )
    output = objective(terms)
    selected, view = output.parts["selected"], output.parts["view"]
    return {
        "loss": output.loss(),
        "loss_mle": _value(output.terms[0]),
        "loss_unlike": _value(output.terms[1]),
        "selected_tokens": [selected[view == first[row] + 1].tolist() for row in range(len(sizes))],
    }


def _value(term: LossTerm) -> torch.Tensor:
    return term.sums.sum() / term.counts.sum()


OBJECTIVES = {"cut": run}
