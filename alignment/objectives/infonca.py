"""InfoNCA: a softmax cross-entropy between rewards and implicit rewards of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    group_log_softmax,
    implicit_rewards,
    pair_metrics,
    pairs,
    reward_weights,
    sum_responses,
)


@dataclass(frozen=True)
class InfoNCA(Objective):
    """Fits the softmax of the implicit rewards of a group to the softmax of its rewards.

    Paper: Noise Contrastive Alignment of Language Models with Explicit Rewards, arXiv 2402.05369,
    the InfoNCA loss.

    Formula: loss = - sum_k w_k log softmax(r)_k, with w = softmax_k(reward / tau) and
    r = beta (log pi(y|x) - log pi_ref(y|x)), summed over tokens; pair: - log sigmoid(r_w - r_l),
    which is DPO; means over groups.

    Differs: `tau` divides the reward, as the release's `temperature_alpha` does. K is data, where
    the release is written for K = 4. The release's bonus for the first response is off.

    In the group form, metrics call the response of highest reward chosen and of lowest rejected.

    Attributes:
        beta: Strength of the pull towards the reference; the release's recipes have 0.01.
        tau: Temperature of the rewards; the release's recipe has 1e-4, practically one-hot.
        form: `group` for scored responses, `pair` for chosen and rejected without rewards.
        first_response_bonus: Added to the first response's reward, so that it wins ties; the
            release adds 0.01.
    """

    beta: float = 0.01
    tau: float = 1e-4
    form: Literal["group", "pair"] = "group"
    first_response_bonus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)
        check_range(self, "tau", above=0.0)

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
            losses = -logsigmoid(rewards[sides[0]] - rewards[sides[1]])  # (G,)
        else:
            sides = best_and_worst(terms)
            weights = reward_weights(terms, self.tau, self.first_response_bonus)
            losses = -sum_responses(weights * group_log_softmax(rewards, terms), terms)  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics=pair_metrics(rewards, terms, sides),
            parts={"per_example": losses, "rewards": rewards},
        )

    def initial_loss(self, terms: GroupTerms) -> float:
        """The mean of ln K over the groups: every implicit reward is zero; ln 2 for pairs."""
        sizes = count_responses(terms) if self.form == "group" else terms.logps.new_tensor([2.0])
        return float(sizes.log().mean())
