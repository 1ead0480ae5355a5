"""Unlikelihood training on scored tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.objectives.base import (
    Group,
    GroupTerms,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    scored_segments,
    token_means,
    token_scores,
)

FLOOR = 1e-20
"""Least 1 - p inside the logarithm, the release's."""


@dataclass(frozen=True)
class Unlikelihood(Objective):
    """Learns tokens of segments that score well, and pushes down the probability of the others.

    Paper: Pretraining Language Models with Human Preferences, arXiv 2302.08582, unlikelihood.

    Formula: with s the score of a token's segment (higher is worse) and a = 1 where s <=
    score_threshold, else 0: loss = mean over tokens of -a log p - alpha (1 - a) log(1 - p).

    Differs: responses follow a prompt, which is not scored. The release's threshold of 0 switches
    thresholds off and takes a = 1 - s; that is `weighting: mixture` here, and 0 is a threshold.

    Attributes:
        alpha: Weight of the unlikelihood; 1 is published for toxicity.
        score_threshold: Highest score of what is learnt; 7.8e-4 is published for toxicity.
        weighting: `threshold`, or `mixture`: a = 1 - s.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})

    alpha: float = 1.0
    score_threshold: float = 7.8e-4
    weighting: Literal["threshold", "mixture"] = "threshold"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", least=0.0)

    def misfit(self, group: Group) -> str | None:
        """Scores that are no weights, where a mixture takes them for such."""
        if self.weighting == "threshold":
            return None
        scored = [scored_segments(response) or () for response in group.responses]
        scores = [segment.score for segments in scored for segment in segments]
        wrong = next((score for score in scores if not 0 <= score <= 1), None)
        if wrong is None:
            return None
        return f"mixes by scores from 0 to 1, the worst, and this row has {wrong:g}: scale them"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over tokens."""
        learnt = self._learnt(terms)  # (N,)
        likelihood = -learnt * terms.logps
        unlikelihood = (1 - learnt) * -_log_complement(terms.logps)
        losses = likelihood + self.alpha * unlikelihood
        return ObjectiveOutput(
            terms=(token_means(losses, torch.ones_like(losses), terms),),
            metrics={
                "likelihood_loss": Mean.of(likelihood),
                "unlikelihood_loss": Mean.of(unlikelihood),
                "tokens/learnt": Mean.of(learnt),
            },
        )

    def _learnt(self, terms: GroupTerms) -> Tensor:
        scores = token_scores(terms)
        if self.weighting == "mixture":
            return 1 - scores
        return (scores <= self.score_threshold).to(scores)


def _log_complement(logps: Tensor) -> Tensor:
    """The log of 1 - p, without gradient below the floor."""
    room = -torch.expm1(logps)
    return torch.where(room > FLOOR, room, 1.0).log().where(room > FLOOR, math.log(FLOOR))
