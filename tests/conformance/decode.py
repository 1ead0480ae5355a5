"""Vectors of decoding rules: the scores of one step, and what they make of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from alignment.contrasts.adacad import AdaCAD, divergence
from alignment.contrasts.args import ARGS
from alignment.contrasts.contrastive import Contrastive
from alignment.contrasts.obrien_lewis import OBrienLewis
from tests.conformance.case import Case


def run_contrastive(  # noqa: PLR0913 - the names of the format
    case: Case,
    *,
    mode: Literal["beam", "sample", "greedy"] = "beam",
    plausibility_alpha: float | None = 0.1,
    min_tokens_to_keep: int | None = None,
    amateur_weight: float = 1.0,
    amateur_temperature: float = 1.0,
) -> Mapping[str, Any]:
    """Li et al. in the form of a search; without a mask all tokens are kept."""
    contrast = Contrastive(
        alpha=plausibility_alpha,
        amateur_weight=amateur_weight,
        amateur_temperature=amateur_temperature,
        min_tokens_to_keep=min_tokens_to_keep or 1,
        form=mode,
    )
    return _found(contrast(case.floats("expert_logits"), case.floats("amateur_logits")))


def run_obrien_lewis(case: Case, *, alpha: float = 0.1, beta: float = 0.5) -> Mapping[str, Any]:
    """O'Brien and Lewis on logits."""
    contrast = OBrienLewis(beta=beta, alpha=alpha)
    return _found(contrast(case.floats("expert_logits"), case.floats("amateur_logits")))


def run_adacad(
    case: Case,
    *,
    threshold: float = 0.0,
    filter_top_p: float | None = None,
    filter_top_p_prior: float | None = None,
) -> Mapping[str, Any]:
    """AdaCAD with the release's filters; the vectors hold one sequence."""
    contrast = AdaCAD(threshold, filter_top_p, filter_top_p_prior)
    context, plain = case.floats("context_logits"), case.floats("plain_logits")
    values = {
        "divergence": divergence(context, plain),
        "alpha": contrast.strength(context, plain),
    }
    single = isinstance(case.expected.get("divergence"), float)
    return {
        **{name: value[0] if single else value for name, value in values.items()},
        **_found(contrast(context, plain)),
    }


def run_args(  # noqa: PLR0913 - the names of the format
    case: Case,
    *,
    top_k: int = 10,
    weight: float = 1.0,
    method: Literal["greedy", "topk"] = "greedy",
    temperature: float | None = None,
    chunk_size: int | None = None,
) -> Mapping[str, Any]:
    """ARGS on one sequence; chunks are a matter of memory, and `topk` is a draw."""
    contrast = ARGS(top_k, weight)
    logits, rewards = case.floats("logits"), case.floats("reward_of_token")
    candidates = contrast.candidates(logits)
    scores = contrast(logits, rewards).gather(-1, candidates)
    found: dict[str, Any] = {"candidates": candidates, "scores": scores}
    if method == "greedy":
        found["next_token"] = candidates[scores.argmax(-1)]
    else:
        found["probabilities"] = (scores / (temperature or 1.0)).softmax(-1)
    return found


def _found(scores: Tensor) -> Mapping[str, Any]:
    """What follows from the scores (B, V) of a step."""
    return {
        "scores": scores,
        "kept": torch.isfinite(scores),
        "next_token": scores.argmax(-1),
        "probabilities": scores.softmax(-1),
    }


OBJECTIVES = {
    "decode_contrastive": run_contrastive,
    "decode_obrien_lewis": run_obrien_lewis,
    "decode_adacad": run_adacad,
    "decode_args": run_args,
}
