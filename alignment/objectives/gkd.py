"""Generalised knowledge distillation with the Jensen-Shannon divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignment.objectives.base import (
    DivergenceSpec,
    GroupTerms,
    LogpsUse,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    mean_divergences,
    role_metrics,
    sum_responses,
    sum_tokens,
)


@dataclass(frozen=True)
class GKD(Objective):
    """Distils by a divergence between forward and reverse KL, on the student's own responses too.

    Paper: On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes,
    arXiv 2306.13649, the generalised Jensen-Shannon divergence.

    Formula: loss = sum over the responses of a group of mean_t beta KL(p, m) + (1 - beta) KL(q, m),
    m = beta p + (1 - beta) q, p teacher and q student; the mean over groups.

    Differs: nothing from `gkd` of the DistiLLM-2 code, where a pair is the sum of its responses.
    Which of them the student wrote is a matter of data; the paper's mixing rate is not here.

    Attributes:
        beta: Weight of the teacher; near 0 like forward KL, near 1 like reverse KL. The paper tries
            0.1, 0.5 and 0.9; the default 0.9 is that of the DistiLLM-2 code.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", least=0.01, most=0.99)

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """The Jensen-Shannon divergence of every response."""
        weights = terms.logps.new_full((terms.num_responses,), self.beta)
        return (DivergenceSpec("jensen_shannon", weights),)

    def logps_use(self, terms: GroupTerms) -> LogpsUse:
        """Only divergences count."""
        return "logged"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over groups."""
        (divergences,) = mean_divergences(terms)  # (R,)
        losses = sum_responses(divergences, terms)  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics={
                **role_metrics("divergences", divergences, terms),
                **role_metrics("logps", sum_tokens(terms.logps, terms), terms),
            },
            parts={"per_example": losses, "divergences": divergences},
        )
