"""Direct preference optimisation."""

from __future__ import annotations

import math
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
    implicit_rewards,
    pair_metrics,
    pairs,
)


@dataclass(frozen=True)
class DPO(Objective):
    """A logistic loss on the margin between the implicit rewards of chosen and rejected.

    Paper: Direct Preference Optimization: Your Language Model is Secretly a Reward Model,
    arXiv 2305.18290, equation 7.

    Formula: loss = - log sigmoid(r_w - r_l), with r = beta (log pi(y|x) - log pi_ref(y|x)), summed
    over the tokens of a response; the mean over pairs.

    Differs: nothing from TRL's `loss_type="sigmoid"`.

    Attributes:
        beta: Strength of the pull towards the reference; the default 0.1 is the paper's and TRL's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "pairs"})

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over pairs."""
        chosen, rejected = pairs(terms)
        rewards = implicit_rewards(self.beta, terms)  # (R,)
        losses = -logsigmoid(rewards[chosen] - rewards[rejected])  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics=pair_metrics(rewards, terms, (chosen, rejected)),
            parts={"per_example": losses, "rewards": rewards},
        )

    def initial_loss(self, terms: GroupTerms) -> float:
        """The loss at zero margins, ln 2."""
        return math.log(2.0)
