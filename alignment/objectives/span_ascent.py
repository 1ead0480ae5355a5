"""Gradient ascent on flagged spans."""

from __future__ import annotations

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
    token_marks,
    token_means,
)


@dataclass(frozen=True)
class SpanAscent(Objective):
    """Lowers the log-prob of flagged tokens, such as hallucinated ones, and learns the rest.

    The loss has no lower bound: few steps, or a small weight.

    Paper: span-level fine-tuning for faithful summaries, arXiv 2510.09915, its gradient ascent.

    Formula: loss = mean over tokens of weight log p in flagged spans, -likelihood_weight log p
    elsewhere.

    Differs: the paper's weights are not known to us; one mean over all tokens, and the likelihood
    of what is not flagged, are our form. `likelihood_weight: 0` is ascent alone.

    Attributes:
        weight: Weight of flagged tokens; our choice.
        likelihood_weight: Weight of the others; our choice.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"spans"})

    weight: float = 1.0
    likelihood_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "weight", least=0.0)
        check_range(self, "likelihood_weight", least=0.0)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over tokens."""
        flagged = token_marks(terms) < 0
        losses = torch.where(flagged, self.weight, -self.likelihood_weight) * terms.logps
        return ObjectiveOutput(
            terms=(token_means(losses, torch.ones_like(losses), terms),),
            metrics={
                "tokens/flagged": Mean.of(flagged.to(losses)),
                "logps/flagged": Mean.of(terms.logps[flagged]),
                "nll_loss": Mean.of(-terms.logps[~flagged]),
            },
        )
