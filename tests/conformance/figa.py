"""Vectors of FIGA: its loss on marked tokens, and the marks that two answers give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alignment.core.edits import edit_marks, shortest_edits
from alignment.objectives.base import GroupTerms
from alignment.objectives.figa import FIGA
from tests.conformance.case import IGNORED_LABEL, Case


def run(
    case: Case,
    *,
    positive_weight: float = 1.0,
    negative_weight: float = -0.5,
    threshold: float = 0.6,
) -> Mapping[str, Any]:
    """The release's loss; revised and original answers alternate, the revised one first."""
    marks = case.ints("edit_mask")
    objective = FIGA(positive_weight, negative_weight, threshold, normalisation="release")
    if case.level == "logits":
        scored = case.ints("labels")[:, 1:] != IGNORED_LABEL
        logps, rows = case.token_logps("policy_logits", "labels")
        flat = marks[:, 1:][scored]
    else:
        # Tokens without an answer: the sign of a mark tells which side it counts on.
        logps, flat = case.floats("policy_token_logps"), marks
        rows = torch.where(marks < 0, 1, 0)
        order = rows.argsort(stable=True)
        logps, flat, rows = logps[order], flat[order], rows[order]
    responses = 2 * (int(rows.max()) // 2 + 1)
    terms = GroupTerms(
        logps=logps,
        response_of_token=rows,
        group_of_response=torch.arange(responses) // 2,
        role=torch.tensor([1, -1]).repeat(responses // 2),
        mark=flat,
    )
    output = objective(terms)
    weights = output.parts["token_weights"]
    if case.level == "logits":
        padded = torch.zeros(scored.shape, dtype=weights.dtype)
        padded[scored] = weights
        weights = padded
    else:
        weights = torch.zeros_like(weights).scatter(0, order, weights)
    return {
        "loss": output.loss(),
        "token_weights": weights,
        "active_tokens": output.counts().sum(),
    }


def run_masks(case: Case, *, eos_token_id: int) -> Mapping[str, Any]:
    """Marks by edits; among several shortest scripts the library chooses, so only length binds."""
    original, revised = case.ints("original_ids").tolist(), case.ints("revised_ids").tolist()
    marks = edit_marks(original, revised, {eos_token_id})
    found: dict[str, Any] = {"edit_distance": len(shortest_edits(original, revised))}
    if case.expected.get("optimal_alignments") == 1:
        found |= {"original_mask": marks[0], "revised_mask": marks[1]}
    return found


OBJECTIVES = {"figa": run, "figa_masks": run_masks}
