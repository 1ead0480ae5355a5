"""Advantage-weighted regression on scored tokens, with a value head that is trained along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignment.objectives.base import (
    GroupTerms,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    token_means,
    token_scores,
)


@dataclass(frozen=True)
class AWR(Objective):
    """Likelihood weighted by how much better a token's segment is than its text made one expect.

    Paper: Pretraining Language Models with Human Preferences, arXiv 2302.08582, AWR and, at
    alpha = 1, reward-weighted regression.

    Formula: r = -score, v = the value head at the position that predicts the token, A = r - v with
    v constant; w = min(exp(A / beta), weight_max); loss = alpha mean(-w log p)
    + (1 - alpha) mean((r - v)^2), means over tokens; w carries no gradient.

    Differs: responses follow a prompt, which is not scored. `fixed` takes a value of 0 too, which
    the release reads as unset. `normalize_advantage` standardises over the tokens of the forward
    pass at hand, as the release does, so it depends on how a batch is divided.

    Attributes:
        alpha: Weight of the regression; 0.5 is our choice.
        beta: Temperature; the paper takes 10, 1 and 0.1 by task.
        baseline: What the reward is compared with: the `value` head, a `fixed` value, or `none`.
        fixed_value: The fixed value.
        clip_value: Cuts values to [-1, 0].
        weight_max: Largest weight of a token; 1000 is the release's.
        normalize_advantage: Standardises advantages.
    """

    alpha: float = 0.5
    beta: float = 1.0
    baseline: Literal["value", "fixed", "none"] = "value"
    fixed_value: float = 0.0
    clip_value: bool = False
    weight_max: float = 1000.0
    normalize_advantage: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", least=0.0, most=1.0)
        check_range(self, "beta", above=0.0)
        check_range(self, "weight_max", above=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        """Scores, and a value head unless nothing reads it."""
        reads_values = self.alpha < 1 or self.baseline == "value"
        return frozenset({"scores", "values"} if reads_values else {"scores"})

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """Two means over tokens."""
        rewards = -token_scores(terms)  # (N,)
        values = self._values(terms)  # (N,)
        advantages = self._advantages(rewards, values)
        weights = (advantages / self.beta).exp().clamp(max=self.weight_max)
        errors = (rewards - values).square()
        one = torch.ones_like(rewards)
        return ObjectiveOutput(
            terms=(
                token_means(-weights * terms.logps, one, terms, self.alpha),
                token_means(errors, one, terms, 1 - self.alpha),
            ),
            metrics={
                "awr/weight": Mean.of(weights),
                "awr/advantage": Mean.of(advantages),
                "loss/value": Mean.of(errors),
                "nll_loss": Mean.of(-terms.logps),
            },
        )

    def _values(self, terms: GroupTerms) -> Tensor:
        if "values" not in self.needs:
            return torch.zeros_like(terms.logps)
        if terms.values is None:
            raise ValueError("AWR trains a value per token, but `values` is missing")
        values = terms.values.to(terms.logps.dtype)
        return values.clamp(-1, 0) if self.clip_value else values

    def _advantages(self, rewards: Tensor, values: Tensor) -> Tensor:
        """(N,) constant."""
        baseline: Tensor | float = 0.0
        if self.baseline == "value":
            baseline = values.detach()
        elif self.baseline == "fixed":
            baseline = self.fixed_value
        advantages = rewards - baseline
        if not self.normalize_advantage or advantages.numel() < 2:
            return advantages
        return (advantages - advantages.mean()) / (advantages.std() + 1e-10)
