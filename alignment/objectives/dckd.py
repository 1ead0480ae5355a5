"""Dual-constrained distillation: an aligned teacher on both responses of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.objectives.base import (
    DivergenceKind,
    DivergenceSpec,
    GroupTerms,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    token_means,
)


@dataclass(frozen=True)
class DCKD(Objective):
    """Likelihood of the chosen response, and forward KL to a teacher that was aligned by DPO.

    The teacher is followed on both responses; nothing pushes the rejected one down as such.

    Paper: Advantage-Guided Distillation for Preference Alignment in Small Language Models,
    ICLR 2025, the loss L_DCKD.

    Formula: loss = sft_weight mean(-log pi) over chosen tokens + distillation_weight (chosen_weight
    mean KL(p, q) over chosen tokens + rejected_weight mean KL(p, q) over rejected tokens).

    Differs: nothing from the paper where `top_k` is unset. The release keeps the 50 likeliest
    tokens of the teacher and one bucket for the rest, with floors on all of them: `top_k: 50`.

    Attributes:
        sft_weight: Weight of the likelihood; 1 is the release's.
        distillation_weight: Weight of both divergences; 1 is the release's.
        chosen_weight: Weight of that on chosen responses; 0.1 is the release's.
        rejected_weight: Weight of that on rejected ones; 0.1 is the release's.
        top_k: How many tokens of the teacher are kept; null keeps the vocabulary.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs", "teacher"})

    sft_weight: float = 1.0
    distillation_weight: float = 1.0
    chosen_weight: float = 0.1
    rejected_weight: float = 0.1
    top_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sft_weight", "distillation_weight", "chosen_weight", "rejected_weight"):
            check_range(self, name, least=0.0)
        if self.top_k is not None:
            check_range(self, "top_k", least=1)

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """Forward KL of every response."""
        whole = self.top_k is None
        kind: DivergenceKind = "skewed_forward_kl" if whole else "bucketed_forward_kl"
        skew = terms.logps.new_zeros(terms.num_responses)
        return (DivergenceSpec(kind, skew, top_k=self.top_k),)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """Three means over tokens."""
        if terms.divergences is None:
            raise ValueError("DCKD compares with a teacher, but `divergences` is missing")
        divergence = terms.divergences[:, 0]
        weight = self.distillation_weight
        likelihood = _mean(-terms.logps, 1, terms, self.sft_weight)
        near_chosen = _mean(divergence, 1, terms, weight * self.chosen_weight)
        near_rejected = _mean(divergence, -1, terms, weight * self.rejected_weight)
        return ObjectiveOutput(
            terms=(likelihood, near_chosen, near_rejected),
            metrics={
                "nll_loss": Mean.ratio(likelihood.sums, likelihood.counts),
                "divergences/chosen": Mean.ratio(near_chosen.sums, near_chosen.counts),
                "divergences/rejected": Mean.ratio(near_rejected.sums, near_rejected.counts),
            },
        )


def _mean(values: Tensor, role: int, terms: GroupTerms, weight: float) -> LossTerm:
    """The mean of `values` (N,) over the tokens of responses of one role."""
    members = terms.role[terms.response_of_token] == role
    return token_means(torch.where(members, values, 0.0), members.to(values), terms, weight)
