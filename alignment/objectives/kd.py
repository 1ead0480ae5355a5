"""Knowledge distillation by forward KL; speculative KD is the same loss on other data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignment.objectives.base import (
    DivergenceSpec,
    GroupTerms,
    LogpsUse,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    mean_divergences,
    sum_responses,
)


@dataclass(frozen=True)
class KD(Objective):
    """Matches the teacher's next-token distribution on the chosen responses.

    Paper: Distilling the Knowledge in a Neural Network, arXiv 1503.02531, at temperature 1.
    Speculative Knowledge Distillation, arXiv 2410.11325, is this loss on responses that the student
    proposes and the teacher corrects token by token.

    Formula: loss = mean_t KL(p, q) on chosen responses, p teacher and q student; the mean over
    chosen responses.

    Differs: nothing from `kd` and `speculative_kd` of the DistiLLM-2 code.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "role"})
    roles: ClassVar[frozenset[int]] = frozenset({1})

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """The forward KL of chosen responses: skewed by nothing."""
        skews = terms.logps.new_zeros(terms.num_responses)
        return (DivergenceSpec("skewed_forward_kl", skews, terms.role > 0),)

    def logps_use(self, terms: GroupTerms) -> LogpsUse:
        """Only divergences count."""
        return "logged"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over chosen responses."""
        (divergences,) = mean_divergences(terms)  # (R,)
        chosen = (terms.role > 0).to(divergences)
        losses = sum_responses(chosen * divergences, terms)  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm(losses, sum_responses(chosen, terms)),),
            metrics={"divergences/chosen": Mean.of(divergences[terms.role > 0])},
            parts={"per_example": losses, "divergences": divergences},
        )
