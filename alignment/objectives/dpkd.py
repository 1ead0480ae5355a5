"""Direct preference knowledge distillation: DPO with the teacher as the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    mean_tokens,
    pair_metrics,
    pairs,
    teacher_mean_logps,
)


@dataclass(frozen=True)
class DPKD(Objective):
    """Prefers the teacher's responses (chosen) to the student's (rejected), length-normalised.

    Paper: Direct Preference Knowledge Distillation for Large Language Models, arXiv 2406.19774.

    Formula: loss = - log sigmoid(r_w - r_l), with r = beta mean_t (log q(y_t) - log p(y_t)),
    p teacher and q student; the mean over pairs.

    Differs: nothing from `dpkd` of the DistiLLM-2 code. The DistiLLM-2 paper reports that training
    with it collapses.

    Attributes:
        beta: Strength of the pull towards the teacher; the default 0.1 is that code's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "pairs"})

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over pairs."""
        chosen, rejected = pairs(terms)
        ratios = mean_tokens(terms.logps, terms) - teacher_mean_logps(terms)
        rewards = self.beta * ratios  # (R,)
        losses = -logsigmoid(rewards[chosen] - rewards[rejected])  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics=pair_metrics(rewards, terms, (chosen, rejected)),
            parts={"per_example": losses, "rewards": rewards},
        )
