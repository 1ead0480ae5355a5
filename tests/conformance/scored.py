"""Vectors of objectives on tokens with scores, from pretraining with human feedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignment.data_tools.condition import Controls, conditioned
from alignment.objectives.awr import AWR
from alignment.objectives.base import GroupTerms, Objective
from alignment.objectives.conditional import Conditional
from alignment.objectives.unlikelihood import Unlikelihood
from tests.conformance.case import IGNORED_LABEL, Case


def run(  # noqa: PLR0913 - one argument for each param of the format
    case: Case,
    *,
    loss_type: str,
    score_threshold: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    use_value_head: bool = False,
    fixed_value: float | None = None,
    clip_value: bool = False,
    clip_weight_max: float = 1000.0,
    normalize_advantage: bool = False,
) -> Mapping[str, Any]:
    """The release's losses; a threshold or a fixed value of 0 is unset there."""
    objectives: dict[str, Objective] = {
        "mle": Conditional(),
        "unlikelihood": Unlikelihood(
            alpha, score_threshold, "threshold" if score_threshold else "mixture"
        ),
        "awr": AWR(
            alpha=alpha if loss_type == "awr" else 0.5,
            beta=beta,
            baseline="fixed" if fixed_value else "value" if use_value_head else "none",
            fixed_value=fixed_value or 0.0,
            clip_value=clip_value,
            weight_max=clip_weight_max,
            normalize_advantage=normalize_advantage,
        ),
    }
    if loss_type not in objectives:
        raise ValueError(f"params.loss_type `{loss_type}` is unknown: {', '.join(objectives)}")
    if case.level == "logits":
        logps, rows = case.token_logps("policy_logits", "labels")
    else:
        logps = case.floats("policy_token_logps")
        rows = torch.zeros(len(logps), dtype=torch.int64)
    responses = int(rows.max()) + 1
    output = objectives[loss_type](
        GroupTerms(
            logps=logps,
            response_of_token=rows,
            group_of_response=torch.arange(responses),
            role=torch.ones(responses, dtype=torch.int64),
            score=_per_token(case, "token_scores", of_target=True),
            values=_per_token(case, "values", of_target=False),
        )
    )
    return {
        "loss": output.loss(),
        **{name: mean.sum / mean.count for name, mean in output.metrics.items()},
    }


def _per_token(case: Case, name: str, *, of_target: bool) -> Tensor | None:
    """(N,) numbers of scored tokens: at the token itself, or at the position that predicts it."""
    if name not in case.inputs:
        return None
    values = case.floats(name)
    if case.level == "logps":
        return values
    scored = case.ints("labels")[:, 1:] != IGNORED_LABEL
    return (values[:, 1:] if of_target else values[:, :-1])[scored]


def run_conditional(  # noqa: PLR0913 - one argument for each param of the format
    case: Case,
    *,
    sequence_length: int,
    threshold: float,
    drop_token_fraction: float,
    split_by_sentences: bool,
    conditional: bool,
    filter_threshold: float | None,
    special_ids: Mapping[str, int],
) -> Mapping[str, Any]:
    """Segments with their control tokens; ids and packing are the release's, for comparison."""
    separator, aligned, misaligned = special_ids
    controls = Controls(aligned, misaligned, threshold, drop_token_fraction)
    texts: list[str] = []
    scores: list[float] = []
    for document in case.inputs["documents"]:
        if filter_threshold is not None and document["avg_score"] > filter_threshold:
            continue
        parts = list(zip(document["texts"], document["scores"], strict=True))
        if not split_by_sentences:
            parts = [(document["text"], document["score"])]
        own = [text for text, _ in parts]
        if conditional and split_by_sentences:
            own = conditioned(parts, controls, seed=case.name)
        texts += [f"{separator}{own[0]}", *own[1:]]
        scores += [score for _, score in parts]
    tokens = [
        (token, score)
        for text, score in zip(texts, scores, strict=True)
        for token in _ids(text, special_ids)
    ]
    whole = len(tokens) // sequence_length * sequence_length
    chunks = [tokens[i : i + sequence_length] for i in range(0, whole, sequence_length)]
    return {
        "input_ids": [[token for token, _ in chunk] for chunk in chunks],
        "token_scores": [[score for _, score in chunk] for chunk in chunks],
        "texts": texts,
    }


def _ids(text: str, special_ids: Mapping[str, int]) -> list[int]:
    """The toy vocabulary: a is 10, b is 11 and so on."""
    ids = []
    while text:
        name = next((name for name in special_ids if text.startswith(name)), text[0])
        ids.append(special_ids.get(name, ord(name[0]) - ord("a") + 10))
        text = text[len(name) :]
    return ids


OBJECTIVES = {"phf": run, "conditional": run_conditional}
