"""Unlikelihood on flagged spans, likelihood elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from alignment.objectives.base import (
    GroupTerms,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    log_complement,
    token_marks,
    token_means,
)

LOG_FLOOR = math.log(1e-20)


@dataclass(frozen=True)
class SpanUnlikelihood(Objective):
    """Makes flagged tokens, such as hallucinated ones, unlikely, and learns the rest.

    Paper: span-level fine-tuning for faithful summaries, arXiv 2510.09915, its unlikelihood loss.

    Formula: loss = mean over tokens of -weight log(1 - p) in flagged spans, -log p elsewhere.

    Differs: the paper's weights are not known to us; one mean over all tokens, and `weight`, are
    our form.

    Attributes:
        weight: Weight of flagged tokens; our choice.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"spans"})

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "weight", least=0.0)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over tokens."""
        flagged = token_marks(terms) < 0
        complement = log_complement(terms.logps, LOG_FLOOR)
        losses = torch.where(flagged, -self.weight * complement, -terms.logps)
        one = torch.ones_like(losses)
        return ObjectiveOutput(
            terms=(token_means(losses, one, terms),),
            metrics={
                "tokens/flagged": Mean.of(flagged.to(losses)),
                "logps/flagged": Mean.of(terms.logps[flagged]),
                "nll_loss": Mean.of(-terms.logps[~flagged]),
            },
        )
