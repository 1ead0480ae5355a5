"""Simple preference optimisation: length-normalised, with a target margin, without reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.objectives.cpo import CPO


@dataclass(frozen=True)
class SimPO(CPO):
    """`CPO` with SimPO's settings: no likelihood term, log-probs per token, a margin.

    CPO-SimPO is this with `cpo_alpha` above 0, AlphaPO with an `alpha` other than 0.

    Paper: SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv 2405.14734,
    equation 6.

    Formula: loss = - log sigmoid(beta (mean log pi(y_w|x) - mean log pi(y_l|x)) - gamma), the mean
    over pairs.

    Differs: nothing. The release states the margin as a ratio, gamma / beta.

    Attributes:
        beta: Scale of the preference; the release's default.
        loss_type: Shape of the preference loss.
        cpo_alpha: Weight of the likelihood of the chosen side.
        simpo_gamma: Target margin, not divided by beta; half of beta, as in the release's recipe
            for a base model.
    """

    beta: float = 2.0
    loss_type: Literal["sigmoid", "hinge", "ipo", "simpo"] = "simpo"
    cpo_alpha: float = 0.0
    simpo_gamma: float = 1.0
