"""DistiLLM, the first version: skewed reverse KL on every response."""

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
class DistiLLM(Objective):
    """Distils by a KL to a mixture that stays finite wherever the teacher gives no probability.

    Paper: DistiLLM: Towards Streamlined Distillation for Large Language Models, arXiv 2402.03898,
    the skew reverse KL.

    Formula: loss = sum over the responses of a group of mean_t KL(q, (1-a) p + a q), p teacher and
    q student; the mean over groups.

    Differs: as in `distillm_v1` of the DistiLLM-2 code, the student inside the mixture is constant,
    and a pair is the sum of its two responses, not their mean. The paper's adaptive sampling of
    student responses is a matter of data, not of this loss.

    Attributes:
        alpha: Weight a of the student in the mixture; the default 0.1 is the paper's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", least=0.0, most=0.99)

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """The skewed reverse KL of every response."""
        skews = terms.logps.new_full((terms.num_responses,), self.alpha)
        return (DivergenceSpec("anchored_reverse_kl", skews),)

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
