"""Contrastive preference optimisation and its relatives; no reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    count_tokens,
    mean_tokens,
    pair_metrics,
    pairs,
    sum_tokens,
)


@dataclass(frozen=True)
class CPO(Objective):
    """A preference loss on the policy's own log-probs, beside the likelihood of the chosen side.

    Paper: Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
    Translation, arXiv 2401.08417, the sum of L_prefer and L_NLL. `simpo`: SimPO, arXiv 2405.14734,
    equation 6; with the likelihood it is the CPO-SimPO of the code of that name. `alpha`: AlphaPO:
    Reward Shape Matters for LLM Alignment, arXiv 2501.03884.

    Formula: loss = mean over pairs of preference(D) - cpo_alpha * mean over chosen tokens of
    log pi; D = f(a) - f(b), f(x) = (1 - exp(-alpha x)) / alpha or x at alpha = 0, a and b the
    log-probs of chosen and rejected (summed for sigmoid and hinge, per token for ipo and simpo);
    sigmoid: -(1-e) log sigmoid(beta D) - e log sigmoid(-beta D); simpo: the same with
    beta D - gamma for beta D; hinge: max(0, 1 - beta D); ipo: (D - 1/(2 beta))^2.

    Differs: the likelihood is a token mean over the global batch, as in TRL and the CPO-SimPO code;
    the paper writes a sum over the sequence. `exp(-alpha x)` is taken at once, where TRL raises
    exp(x) to a power and overflows on long responses.

    Attributes:
        beta: Scale of the preference; the default 0.1 is the paper's and TRL's.
        loss_type: Shape of the preference loss. Plain SimPO is `objective: simpo`, or `simpo` here
            with `cpo_alpha` set to 0.
        cpo_alpha: Weight of the likelihood; the default 1.0 is the paper's and TRL's.
        simpo_gamma: Target margin of `simpo`, not divided by beta; TRL's default.
        label_smoothing: Chance e that a pair is labelled the wrong way round; hinge and ipo ignore
            it, as TRL does.
        alpha: Shape of f; 0, TRL's default, is the log-prob itself.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs"})

    beta: float = 0.1
    loss_type: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    cpo_alpha: float = 1.0
    simpo_gamma: float = 0.5
    label_smoothing: float = 0.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)
        check_range(self, "cpo_alpha", least=0.0)
        check_range(self, "simpo_gamma", least=0.0)
        check_range(self, "label_smoothing", least=0.0, most=0.5)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """A mean over pairs, and one over chosen tokens."""
        chosen, rejected = pairs(terms)
        summed = sum_tokens(terms.logps, terms)  # (R,)
        per_token = self.loss_type in ("ipo", "simpo")
        shaped = self._shape(mean_tokens(terms.logps, terms) if per_token else summed)
        losses = self._preference(shaped[chosen] - shaped[rejected])  # (G,)
        rewards = self.beta * shaped
        likelihood = LossTerm(-summed[chosen], count_tokens(terms)[chosen], self.cpo_alpha)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses), likelihood),
            metrics={
                **pair_metrics(rewards, terms, (chosen, rejected)),
                "nll_loss": Mean.ratio(likelihood.sums, likelihood.counts),
            },
            parts={"per_example": losses, "rewards": rewards},
        )

    def _shape(self, logps: Tensor) -> Tensor:
        return logps if self.alpha == 0 else -torch.expm1(-self.alpha * logps) / self.alpha

    def _preference(self, margin: Tensor) -> Tensor:
        if self.loss_type == "hinge":
            return (1 - self.beta * margin).relu()
        if self.loss_type == "ipo":
            return (margin - 1 / (2 * self.beta)).square()
        logit = self.beta * margin - (self.simpo_gamma if self.loss_type == "simpo" else 0.0)
        smoothing = self.label_smoothing
        return -(1 - smoothing) * logsigmoid(logit) - smoothing * logsigmoid(-logit)
