"""Vectors of the distillation objectives: DistiLLM-2 and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alignment.core.divergences import HeadInput, token_divergences
from alignment.objectives.base import (
    GroupTerms,
    Objective,
    ObjectiveOutput,
    Progress,
    mean_tokens,
    teacher_mean_logps,
)
from alignment.objectives.distillm import DistiLLM
from alignment.objectives.distillm2 import DistiLLM2
from alignment.objectives.dpkd import DPKD
from alignment.objectives.gkd import GKD
from alignment.objectives.kd import KD
from alignment.objectives.seqkd import SeqKD
from tests.conformance.case import IGNORED_LABEL, Case, TokenLogps, merge_responses

SIDES = ("chosen", "rejected")


def run_distillm2(  # noqa: PLR0913 - one argument for each param of the format
    case: Case,
    *,
    loss_type: str = "distillm_v2",
    base_alpha_1: float = 0.1,
    base_alpha_2: float = 0.1,
    anchor_chosen: float | None = None,
    anchor_rejected: float | None = None,
    gradual_beta: bool = False,
    global_step: int = 0,
    max_steps: int = 1,
) -> Mapping[str, Any]:
    """The release's form; an anchor of null is a fixed skew on its side."""
    if loss_type != "distillm_v2":
        raise ValueError(f"params.loss_type `{loss_type}` is unknown: distillm_v2")
    anchors = {"anchors/chosen": anchor_chosen, "anchors/rejected": anchor_rejected}
    state = {k: torch.tensor(v, dtype=case.dtype) for k, v in anchors.items() if v is not None}
    objective = DistiLLM2(
        form="release",
        skew="adaptive" if state else "fixed",
        curriculum="release" if gradual_beta else "off",
        alpha_chosen=base_alpha_1,
        alpha_rejected=base_alpha_2,
    )
    terms, output = _compute(case, objective, Progress(global_step, max_steps), state)
    skews, gaps = output.parts["skews"], output.parts["gaps"]
    return {
        **_values(terms, output),
        "beta": 2 * output.parts["beta"],
        "alpha_chosen": skews[0::2],
        "alpha_rejected": skews[1::2],
        "batch_gap_chosen": gaps[0::2].mean(),
        "batch_gap_rejected": gaps[1::2].mean(),
    }


def run_other(case: Case, *, loss_type: str, beta: float = 0.1) -> Mapping[str, Any]:
    """The other losses of the DistiLLM-2 code; only DPKD has a parameter."""
    objectives: dict[str, Objective] = {
        "distillm_v1": DistiLLM(),
        "gkd": GKD(),
        "kd": KD(),
        "speculative_kd": KD(),
        "seqkd": SeqKD(),
        "dpkd": DPKD(beta=beta),
    }
    if loss_type not in objectives:
        raise ValueError(f"params.loss_type `{loss_type}` is unknown: {', '.join(objectives)}")
    values = _values(*_compute(case, objectives[loss_type]))
    if isinstance(objectives[loss_type], KD):
        # What the reference lists there takes no part in its loss; KD computes nothing.
        del values["rejected_position_kl"]
    return values


def _compute(
    case: Case,
    objective: Objective,
    progress: Progress = Progress(),
    state: Mapping[str, Tensor] | None = None,
) -> tuple[GroupTerms, ObjectiveOutput]:
    """Scores both models, through the project's own heads, and applies the objective."""
    logps, response_of_token = _pair_logps(case, "student")
    count = len(case.floats("student_chosen_logits"))
    terms = GroupTerms(
        logps=logps,
        teacher_logps=_pair_logps(case, "teacher")[0].detach(),
        response_of_token=response_of_token,
        group_of_response=torch.arange(count).repeat_interleave(2),
        role=torch.tensor([1, -1]).repeat(count),
        progress=progress,
        state=state or {},
    )
    specs = objective.divergences(terms)
    if specs:
        divergences = token_divergences(
            _head(case, "student"), _head(case, "teacher"), response_of_token, specs
        )
        terms = replace(terms, divergences=divergences)
    return terms, objective(terms)


def _values(terms: GroupTerms, output: ObjectiveOutput) -> dict[str, Any]:
    means = {"student": mean_tokens(terms.logps, terms), "teacher": teacher_mean_logps(terms)}
    values = {
        "loss": output.loss(),
        "per_example": output.parts["per_example"],
        **{
            f"{model}_{side}_mean_logps": mean[offset::2]
            for model, mean in means.items()
            for offset, side in enumerate(SIDES)
        },
    }
    if "divergences" in output.parts:
        for offset, side in enumerate(SIDES):
            values[f"{side}_position_kl"] = output.parts["divergences"][offset::2]
    return values


def _pair_logps(case: Case, model: str) -> tuple[Tensor, Tensor]:
    """Log-probs of the scored tokens of both sides, in the order of the responses."""
    parts = []
    for offset, side in enumerate(SIDES):
        tokens = case.token_logps(f"{model}_{side}_logits", f"{side}_labels")
        parts.append(TokenLogps(tokens.values, 2 * tokens.rows + offset))
    return merge_responses(parts)


def _head(case: Case, model: str) -> HeadInput:
    """Hidden = logits, head = identity, in the order of `_pair_logps`."""
    states, rows = [], []
    for offset, side in enumerate(SIDES):
        scored = case.ints(f"{side}_labels")[:, 1:] != IGNORED_LABEL
        states.append(case.floats(f"{model}_{side}_logits")[:, :-1][scored])
        rows.append(2 * scored.nonzero()[:, 0] + offset)
    hidden = torch.cat(states)[torch.cat(rows).argsort(stable=True)]
    return HeadInput(hidden, torch.eye(hidden.shape[1], dtype=hidden.dtype))


OBJECTIVES = {"distillm2": run_distillm2, "distill_other": run_other}
