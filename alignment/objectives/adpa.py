"""Advantage-guided distillation: two teachers tell which tokens alignment has made likelier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    count_tokens,
    pairs,
    sum_tokens,
)


@dataclass(frozen=True)
class ADPA(Objective):
    """Raises, at every token of the student's own sample, the expected advantage of the next one.

    The sample is the rejected side of a pair; no label of preference is read. The advantage is what
    alignment has done to a teacher: its log-probs after DPO minus those before.

    Paper: Advantage-Guided Distillation for Preference Alignment in Small Language Models,
    ICLR 2025, the loss L_ADPA.

    Formula: A(v) = log p(v) - log r(v), p the aligned teacher and r the second one; loss =
    sft_weight mean(-log pi) over chosen tokens - adpa_weight mean over sample tokens of
    sum_v q(v) A(v).

    Differs: nothing from the paper by default. `clip_advantage` cuts advantages and probabilities
    to (0, 1), as the release does by loading both through one function, so it never punishes a
    token; `top_k: 50` keeps the teachers' likeliest tokens, as the release does.
    `importance_sampling: release` multiplies by the mean of pi / ref over the samples of the
    forward pass at hand, which carries gradient; `sequence` weighs each sample by its own ratio.
    The release's commands take the student's checkpoint for the second teacher; the text, as here,
    what the teacher started from.

    Attributes:
        sft_weight: Weight of the likelihood; 1 is the release's.
        adpa_weight: Weight of the advantage; 1.6 is the release's.
        top_k: How many tokens of the teachers are kept; null keeps the vocabulary.
        clip_advantage: Cuts as the release does.
        importance_sampling: `off`, `sequence` or `release`.
        kl_penalty_weight: Weight of the mean of log ref - log pi over samples; 0 is off.
    """

    sft_weight: float = 1.0
    adpa_weight: float = 1.6
    top_k: int | None = None
    clip_advantage: bool = False
    importance_sampling: Literal["off", "sequence", "release"] = "off"
    kl_penalty_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sft_weight", "adpa_weight", "kl_penalty_weight"):
            check_range(self, name, least=0.0)
        if self.top_k is not None:
            check_range(self, "top_k", least=1)

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs and two teachers; a reference for the two options that compare with one."""
        needs: set[Need] = {"pairs", "teacher", "second_teacher"}
        if self.importance_sampling != "off" or self.kl_penalty_weight > 0:
            needs.add("reference")
        return frozenset(needs)

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """The expected advantage on the student's samples."""
        kind: DivergenceKind = "clipped_advantage" if self.clip_advantage else "expected_advantage"
        skew = terms.logps.new_zeros(terms.num_responses)
        return (DivergenceSpec(kind, skew, terms.role < 0, self.top_k),)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """Two means over tokens, and one over groups."""
        if terms.divergences is None:
            raise ValueError("ADPA compares two teachers, but `divergences` is missing")
        chosen, sampled = pairs(terms)
        tokens, logps = count_tokens(terms), sum_tokens(terms.logps, terms)  # (R,), (R,)
        ratios = self._ratios(terms, logps)[sampled]  # (G,)
        advantages = sum_tokens(terms.divergences[:, 0], terms)[sampled]  # (G,)
        likelihood = LossTerm(-logps[chosen], tokens[chosen], self.sft_weight)
        guided = LossTerm(-advantages * self._factor(ratios), tokens[sampled], self.adpa_weight)
        penalty = LossTerm.mean(-ratios, self.kl_penalty_weight)
        return ObjectiveOutput(
            terms=(likelihood, guided, penalty),
            metrics={
                "nll_loss": Mean.ratio(likelihood.sums, likelihood.counts),
                "adpa/advantage": Mean.ratio(advantages, tokens[sampled]),
                "adpa/importance": Mean.of(ratios.exp()),
            },
        )

    def _ratios(self, terms: GroupTerms, logps: Tensor) -> Tensor:
        """(R,) log pi - log ref of each response; zero where nothing reads it."""
        if "reference" not in self.needs:
            return torch.zeros_like(logps)
        if terms.ref_logps is None:
            raise ValueError("ADPA's options compare with a reference, but `ref_logps` is missing")
        return logps - sum_tokens(terms.ref_logps, terms)

    def _factor(self, ratios: Tensor) -> Tensor:
        """(G,) what the advantage of each sample is multiplied by."""
        if self.importance_sampling == "off":
            return torch.ones_like(ratios)
        weights = ratios.exp()
        return (
            weights if self.importance_sampling == "sequence" else weights.mean().expand_as(weights)
        )
