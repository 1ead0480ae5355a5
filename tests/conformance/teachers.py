"""Vectors of objectives that keep the teacher's likeliest tokens: DCKD and ADPA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from alignment.core.buckets import stored_advantage
from alignment.core.divergences import HeadInput, token_divergences
from alignment.objectives.adpa import ADPA
from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Objective,
    ObjectiveOutput,
)
from alignment.objectives.dckd import DCKD
from tests.conformance.case import IGNORED_LABEL, Case, TokenLogps, merge_responses

SIDES = ("chosen", "rejected")


def run_dckd(  # noqa: PLR0913 - one argument for each param of the format
    case: Case,
    *,
    top_k: int = 50,
    sft_weight: float = 1.0,
    distillation_weight: float = 1.0,
    chosen_weight: float = 0.1,
    rejected_weight: float = 0.1,
) -> Mapping[str, Any]:
    """The release's loss, on buckets."""
    objective = DCKD(sft_weight, distillation_weight, chosen_weight, rejected_weight, top_k)
    teacher = {side: case.floats(f"teacher_{side}_logits") for side in SIDES}
    _, output = _compute(case, objective, teacher)
    likelihood, chosen, rejected = map(_value, output.terms)
    return {
        "loss": output.loss(),
        "nll_loss": likelihood,
        "chosen_kl": chosen,
        "rejected_kl": rejected,
    }


def run_adpa(  # noqa: PLR0913 - one argument for each param of the format
    case: Case,
    *,
    top_k: int = 50,
    sft_weight: float = 1.0,
    adpa_weight: float = 1.6,
    importance_sampling: bool = False,
    kl_penalty_weight: float = 0.0,
    clip_advantage: bool = True,
) -> Mapping[str, Any]:
    """The release's loss; the teachers are known on the student's sample alone."""
    sampling: Literal["release", "off"] = "release" if importance_sampling else "off"
    objective = ADPA(sft_weight, adpa_weight, top_k, clip_advantage, sampling, kl_penalty_weight)
    aligned, second = (
        {
            "chosen": torch.zeros_like(case.floats("policy_chosen_logits")),
            "rejected": case.floats(f"{name}_teacher_rejected_logits"),
        }
        for name in ("aligned", "reference")
    )
    terms, output = _compute(case, objective, aligned, second)
    likelihood, _, penalty = map(_value, output.terms)
    advantage, importance = (output.metrics[f"adpa/{n}"] for n in ("advantage", "importance"))
    return {
        "loss": output.loss(),
        "nll_loss": likelihood,
        "adpa_loss": -advantage.sum / advantage.count,
        "mean_importance_weight": importance.sum / importance.count,
        "kl_penalty": penalty,
        "advantage": _advantages(case, terms, aligned, second, top_k),
    }


def _compute(
    case: Case,
    objective: Objective,
    teacher: Mapping[str, Tensor],
    second: Mapping[str, Tensor] | None = None,
) -> tuple[GroupTerms, ObjectiveOutput]:
    policy = {side: case.floats(f"policy_{side}_logits") for side in SIDES}
    parts = []
    for offset, side in enumerate(SIDES):
        tokens = case.token_logps(f"policy_{side}_logits", f"{side}_labels")
        parts.append(TokenLogps(tokens.values, 2 * tokens.rows + offset))
    logps, response_of_token = merge_responses(parts)
    count = len(policy["chosen"])
    terms = GroupTerms(
        logps=logps,
        response_of_token=response_of_token,
        group_of_response=torch.arange(count).repeat_interleave(2),
        role=torch.tensor([1, -1]).repeat(count),
    )
    terms = replace(terms, ref_logps=_reference(case, terms))
    divergences = token_divergences(
        _head(case, policy),
        _head(case, teacher),
        response_of_token,
        objective.divergences(terms),
        second=None if second is None else _head(case, second),
    )
    terms = replace(terms, divergences=divergences)
    return terms, objective(terms)


def _reference(case: Case, terms: GroupTerms) -> Tensor | None:
    """(N,) log-probs whose sum over a sample is the stored one; all of it on the first token."""
    if "ref_rejected_logps" not in case.inputs:
        return None
    stored = case.floats("ref_rejected_logps").detach()
    first = terms.response_of_token.diff(prepend=terms.response_of_token.new_tensor([-1])) != 0
    summed = torch.zeros(terms.num_responses, dtype=stored.dtype)
    summed[1::2] = stored
    return torch.where(first, summed[terms.response_of_token], 0.0)


def _head(case: Case, logits: Mapping[str, Tensor]) -> HeadInput:
    """Hidden = logits, head = identity, in the order of the responses."""
    states, rows = [], []
    for offset, side in enumerate(SIDES):
        scored = case.ints(f"{side}_labels")[:, 1:] != IGNORED_LABEL
        states.append(logits[side][:, :-1][scored])
        rows.append(2 * scored.nonzero()[:, 0] + offset)
    hidden = torch.cat(states)[torch.cat(rows).argsort(stable=True)]
    return HeadInput(hidden, torch.eye(hidden.shape[1], dtype=hidden.dtype))


def _advantages(
    case: Case,
    terms: GroupTerms,
    aligned: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    top_k: int,
) -> list[list[list[float]]]:
    """Per sample and token, the advantage of each entry of the vocabulary before clipping."""
    log_p, log_r = (_head(case, side).hidden.log_softmax(1) for side in (aligned, second))
    size = min(top_k, log_p.shape[1])
    kept, index = log_p.topk(size, 1)
    stored = torch.zeros_like(log_r, dtype=torch.bool).scatter(1, log_r.topk(size, 1).indices, True)
    values = stored_advantage(kept, log_r.gather(1, index), stored.gather(1, index))
    full = torch.full_like(log_p, -torch.inf).scatter(1, index, values)
    samples = range(1, terms.num_responses, 2)
    return [full[terms.response_of_token == sample].tolist() for sample in samples]


def _value(term: LossTerm) -> Tensor:
    return term.sums.sum() / term.counts.sum()


OBJECTIVES = {"dckd": run_dckd, "adpa": run_adpa}
