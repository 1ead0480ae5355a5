"""Simple preference optimisation: length-normalised, with a target margin, without reference."""

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
)


@dataclass(frozen=True)
class SimPO(Objective):
    """A logistic loss on the margin between mean log-probs, which must exceed a target.

    Paper: SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv 2405.14734,
    equation 6.

    Formula: loss = - log sigmoid(r_w - r_l - gamma), with r = beta times the mean of
    log pi(y_t | x, y_<t) over the tokens of a response; the mean over pairs.

    Differs: nothing. The release and recipes quoted from it state the margin as gamma / beta. With
    a likelihood term (CPO-SimPO), another reward shape (AlphaPO) or label smoothing it is `cpo`
    with `loss_type: simpo`.

    Attributes:
        beta: Scale of the rewards; with `gamma` the authors' setting for a Llama 3 base model.
        gamma: Target margin between the rewards, in the units of r.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs"})

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)
        check_range(self, "gamma", least=0.0)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over pairs."""
        chosen, rejected = pairs(terms)
        rewards = self.beta * mean_tokens(terms.logps, terms)  # (R,)
        losses = -logsigmoid(rewards[chosen] - rewards[rejected] - self.gamma)  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics=pair_metrics(rewards, terms, (chosen, rejected)),
            parts={"per_example": losses, "rewards": rewards},
        )
