"""Noise contrastive alignment over any number of scored responses, or over pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment.objectives.base import (
    Group,
    GroupTerms,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    alone,
    best_and_worst,
    check_range,
    count_responses,
    implicit_rewards,
    pair_metrics,
    pairs,
    reward_weights,
    sum_responses,
)


@dataclass(frozen=True)
class NCA(Objective):
    """Raises each response by its reward's weight, and lowers all of them equally as noise.

    Its optimum is absolute, not only relative between responses: that keeps the likelihood of good
    responses from falling.

    Paper: Noise Contrastive Alignment of Language Models with Explicit Rewards, arXiv 2402.05369,
    the NCA loss.

    Formula: loss = - sum_k w_k log sigmoid(r_k) - (1/K) sum_k log sigmoid(-r_k), with
    w = softmax_k(reward / tau) and r = beta (log pi(y|x) - log pi_ref(y|x)), summed over tokens;
    pair: - log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l); biased pair:
    - log sigmoid(r_w) - log sigmoid(-r_l); means over groups.

    Differs: `tau` divides the reward, as the release's `temperature_alpha` does. K is data, where
    the release is written for K = 4. The release's bonus for the first response is off. The pair
    form equals TRL's `nca_pair`, its biased variant TRL's `bco_pair` without a baseline.

    In the group form, metrics call the response of highest reward chosen and of lowest rejected.

    Attributes:
        beta: Strength of the pull towards the reference; the release's recipes have 0.01.
        tau: Temperature of the rewards; the release's recipe has 1e-4, practically one-hot.
        form: `group` for scored responses, `pair` for chosen and rejected without rewards.
        biased: Drops the chosen response from the noise; pairs only.
        first_response_bonus: Added to the first response's reward, so that it wins ties; the
            release adds 0.01.
    """

    beta: float = 0.01
    tau: float = 1e-4
    form: Literal["group", "pair"] = "group"
    biased: bool = False
    first_response_bonus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)
        check_range(self, "tau", above=0.0)
        if self.biased and self.form == "group":
            raise ValueError("NCA.biased is True, which is defined for pairs: use form: pair")

    @property
    def needs(self) -> frozenset[Need]:
        """A reference, and rewards or pairs."""
        return frozenset({"reference", "reward" if self.form == "group" else "pairs"})

    def misfit(self, group: Group) -> str | None:
        """A single response: its share of the group is 1 whatever the model says."""
        return alone(group)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over groups."""
        rewards = implicit_rewards(self.beta, terms)  # (R,)
        if self.form == "pair":
            sides = pairs(terms)
            losses = self._pair_losses(rewards[sides[0]], rewards[sides[1]])  # (G,)
        else:
            sides = best_and_worst(terms)
            losses = self._group_losses(rewards, terms)  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics=pair_metrics(rewards, terms, sides),
            parts={"per_example": losses, "rewards": rewards},
        )

    def initial_loss(self, terms: GroupTerms) -> float:
        """The loss at zero rewards, 2 ln 2 for every form and every K."""
        return 2 * math.log(2.0)

    def _group_losses(self, rewards: Tensor, terms: GroupTerms) -> Tensor:
        weights = reward_weights(terms, self.tau, self.first_response_bonus)
        data = sum_responses(weights * logsigmoid(rewards), terms)
        noise = sum_responses(logsigmoid(-rewards), terms) / count_responses(terms)
        return -data - noise

    def _pair_losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        if self.biased:
            return -logsigmoid(chosen) - logsigmoid(-rejected)
        return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2
