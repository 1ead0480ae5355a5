"""Anchored preference optimisation, paired and unpaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    count_responses,
    implicit_rewards,
    pair_metrics,
    pairs,
    role_metrics,
    sum_responses,
    sum_tokens,
)


@dataclass(frozen=True)
class APO(Objective):
    """Preference with an anchor: not only the margin counts, but where each side moves.

    `zero` raises chosen and lowers rejected responses: for chosen responses better than the model.
    `down` lowers both, the rejected one more: for chosen responses worse than the model.

    Paper: Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
    in Alignment, arXiv 2408.06266, the losses of APO-zero and APO-down.

    Formula: zero: loss = sigmoid(-r_w) + sigmoid(r_l); down: loss = sigmoid(r_w) +
    sigmoid(-(r_w - r_l)); unpaired: loss = w_d sigmoid(-r) if desirable, w_u sigmoid(r) if not;
    r = beta (log pi(y|x) - log pi_ref(y|x)), summed over tokens; means over pairs or responses.

    Differs: nothing from TRL's `apo_zero`, `apo_down` (DPO trainer) and `apo_zero_unpaired` (KTO
    trainer). The weights of the unpaired form are not in its denominator, which counts responses.

    Attributes:
        beta: Strength of the pull towards the reference; TRL's default, for want of the paper's.
        variant: `zero` or `down`.
        form: `pair`, or `unpaired` (variant `zero` only) for single responses labelled by role.
        desirable_weight: w_d, unpaired form only; TRL's default.
        undesirable_weight: w_u, unpaired form only; TRL's default.
    """

    beta: float = 0.1
    variant: Literal["zero", "down"] = "zero"
    form: Literal["pair", "unpaired"] = "pair"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)
        check_range(self, "desirable_weight", least=0.0)
        check_range(self, "undesirable_weight", least=0.0)
        if self.form == "unpaired" and self.variant == "down":
            raise ValueError("APO.variant is 'down', which compares pairs: use form: pair")

    @property
    def needs(self) -> frozenset[Need]:
        """A reference, and pairs or responses that are each desirable or undesirable."""
        return frozenset({"reference", "pairs" if self.form == "pair" else "role"})

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over pairs, or over responses."""
        rewards = implicit_rewards(self.beta, terms)  # (R,)
        return self._paired(rewards, terms) if self.form == "pair" else self._single(rewards, terms)

    def initial_loss(self, terms: GroupTerms) -> float:
        """1.0 for pairs; half the mean weight of the responses for the unpaired form."""
        return 1.0 if self.form == "pair" else float(self._weights(terms).mean()) / 2

    def _paired(self, rewards: Tensor, terms: GroupTerms) -> ObjectiveOutput:
        sides = pairs(terms)
        chosen, rejected = rewards[sides[0]], rewards[sides[1]]  # (G,)
        if self.variant == "zero":
            losses = (-chosen).sigmoid() + rejected.sigmoid()
        else:
            losses = chosen.sigmoid() + (rejected - chosen).sigmoid()
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics=pair_metrics(rewards, terms, sides),
            parts={"per_example": losses, "rewards": rewards},
        )

    def _single(self, rewards: Tensor, terms: GroupTerms) -> ObjectiveOutput:
        losses = self._weights(terms) * (-terms.role * rewards).sigmoid()  # (R,)
        return ObjectiveOutput(
            terms=(LossTerm(sum_responses(losses, terms), count_responses(terms)),),
            metrics={
                **role_metrics("rewards", rewards, terms),
                **role_metrics("logps", sum_tokens(terms.logps, terms), terms),
            },
            parts={"per_example": losses, "rewards": rewards},
        )

    def _weights(self, terms: GroupTerms) -> Tensor:
        if (terms.role == 0).any():
            raise ValueError("every response needs a role, desirable (+1) or undesirable (-1)")
        weights = terms.logps.new_tensor((self.desirable_weight, self.undesirable_weight))
        return weights[(terms.role < 0).long()]  # (R,)
