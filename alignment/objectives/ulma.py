"""Unified learning from demonstrations and pointwise preferences, and pointwise DPO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment.objectives.base import (
    Group,
    GroupTerms,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    count_tokens,
    mean_tokens,
    response_means,
    reward_labels,
    sum_tokens,
)


@dataclass(frozen=True)
class ULMA(Objective):
    """Likelihood on responses that are right, a pointwise preference on all others.

    Every response is a point with a label z: 1 is a demonstration.

    Paper: ULMA: Unified Language Model Alignment with Human Demonstration and Point-wise
    Preference, arXiv 2312.02554, its loss and that of pointwise DPO.

    Formula: d = log pi - log ref per token, b = beta, c = constant; a response with z other than 1:
    -log sigmoid(-b d - c) if binary, (z - b d - c)^2 if continuous; one with z = 1: -log pi per
    token (`logloss`), b times that (`beta_logloss`), -log sigmoid(b d + c) (`pointwise_dpo`), or
    the mean of -log pi over all tokens of demonstrations (`token_mean`, the source's
    `shifted_ce_loss`); loss = the mean over demonstrations + the mean over the others.

    Differs: log-probs are means per token, as in the release. Each class is averaged over the
    global batch; the release averages over a micro-batch.

    Attributes:
        beta: Scale of the log-ratio; 0.1 is the release's default.
        constant: Stands for the partition function; 0 is the release's default.
        preference: `binary` reads z from the label, `continuous` from the reward; a reward of
            exactly 1 is a demonstration.
        demonstration: What demonstrations are learnt by.
    """

    beta: float = 0.1
    constant: float = 0.0
    preference: Literal["binary", "continuous"] = "binary"
    demonstration: Literal["logloss", "beta_logloss", "pointwise_dpo", "token_mean"] = "logloss"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        """A reference, and labels of the kind that `preference` reads."""
        return frozenset({"reference", "reward" if self.preference == "continuous" else "role"})

    def misfit(self, group: Group) -> str | None:
        """Rewards on another scale, where 1 would be the worst and yet a demonstration."""
        if self.preference == "binary":
            return None
        rewards = [response.reward or 0.0 for response in group.responses]
        wrong = next((reward for reward in rewards if not 0 <= reward <= 1), None)
        if wrong is None:
            return None
        return f"takes rewards from 0 to 1, a demonstration, and this row has {wrong:g}: scale them"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over demonstrations, one over the other responses."""
        labels = self._labels(terms)  # (R,)
        logits = self._logits(terms)  # (R,)
        is_demonstration = labels == 1
        one = torch.ones_like(logits)
        if self.preference == "binary":
            preference = -logsigmoid(-logits)
        else:
            preference = (labels - logits).square()
        shown, sizes = self._demonstration(terms, logits)
        learnt = response_means(shown, sizes, is_demonstration, terms)
        preferred = response_means(preference, one, ~is_demonstration, terms)
        rewards = (logits - self.constant).detach().sigmoid()
        return ObjectiveOutput(
            terms=(learnt, preferred),
            metrics={
                "loss/demonstration": Mean.ratio(learnt.sums, learnt.counts),
                "loss/preference": Mean.ratio(preferred.sums, preferred.counts),
                "rewards/chosen": Mean.of(rewards[is_demonstration]),
                "rewards/rejected": Mean.of(rewards[~is_demonstration]),
            },
            parts={"rewards": rewards},
        )

    def initial_loss(self, terms: GroupTerms) -> float | None:
        """Known unless a demonstration is learnt by likelihood."""
        by_likelihood = self.demonstration != "pointwise_dpo"
        if by_likelihood and bool((self._labels(terms) == 1).any()):
            return None
        return float(self(replace(terms, ref_logps=terms.logps)).loss())

    def _labels(self, terms: GroupTerms) -> Tensor:
        if self.preference == "continuous":
            return reward_labels(terms).to(terms.logps)
        return (terms.role > 0).to(terms.logps)

    def _logits(self, terms: GroupTerms) -> Tensor:
        """(R,) b d + c."""
        if terms.ref_logps is None:
            raise ValueError("ULMA compares with a reference, but `ref_logps` is missing")
        return self.beta * mean_tokens(terms.logps - terms.ref_logps, terms) + self.constant

    def _demonstration(self, terms: GroupTerms, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) loss of a response that is a demonstration, and (R,) what it counts for."""
        one = torch.ones_like(logits)
        if self.demonstration == "token_mean":
            return -sum_tokens(terms.logps, terms), count_tokens(terms)
        if self.demonstration == "pointwise_dpo":
            return -logsigmoid(logits), one
        factor = self.beta if self.demonstration == "beta_logloss" else 1.0
        return -factor * mean_tokens(terms.logps, terms), one
