"""Multi-preference optimisation: some responses of a group against all that were selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.objectives.base import (
    Group,
    GroupTerms,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    alone,
    check_range,
    count_responses,
    group_log_softmax,
    group_max,
    mean_tokens,
    reward_labels,
    sum_responses,
    sum_tokens,
)


@dataclass(frozen=True)
class AMPO(Objective):
    """Raises the share of the positives among the selected responses of a group.

    Role +1 is a positive, -1 a selected negative, 0 not selected. A group without any role has its
    best response by reward for the positive and all others for negatives.

    Paper: AMPO: Active Multi-Preference Optimization, arXiv 2502.18293, its group loss.

    Formula: s_k = log pi(y_k) + alpha (R_k - mean R); loss = -log(sum over positives of e^s / sum
    over all selected of e^s), the mean over groups; no reference.

    Differs: nothing from the loss as quoted. It is unverified whether the trained variant is
    normalised by length and has a margin; `length_normalised` and `gamma` are our form of both.

    Attributes:
        alpha: Weight of the reward; it raises the score of responses with a good one, so what the
            reward tells already has a small gradient. 1 is our choice.
        length_normalised: Takes log-probs per token.
        beta: Factor on the log-probs; 1 is the loss as quoted.
        gamma: Margin that is taken off the positives' scores; 0 is the loss as quoted.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reward"})

    alpha: float = 1.0
    length_normalised: bool = False
    beta: float = 1.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0.0)
        check_range(self, "gamma", least=0.0)

    def misfit(self, group: Group) -> str | None:
        """A single response, or roles without a positive or without a negative."""
        roles = {response.role for response in group.responses}
        one_sided = roles != {0} and not roles >= {-1, 1}
        told = "sets responses of role 1 against those of role -1 and this row lacks one kind"
        return alone(group) or (told if one_sided else None)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over groups."""
        rewards = reward_labels(terms).to(terms.logps)
        role = _selected(terms, rewards)
        reduce = mean_tokens if self.length_normalised else sum_tokens
        mean_reward = (sum_responses(rewards, terms) / count_responses(terms))[
            terms.group_of_response
        ]
        scores = self.beta * reduce(terms.logps, terms) + self.alpha * (rewards - mean_reward)
        lowered = scores - self.gamma * (role > 0)
        losses = _group_logsumexp(lowered, role != 0, terms) - _group_logsumexp(
            lowered, role > 0, terms
        )
        share = group_log_softmax(torch.where(role != 0, lowered, -torch.inf), terms).exp()
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics={"ampo/share": Mean.of(sum_responses(share * (role > 0), terms))},
            parts={"per_example": losses, "scores": scores},
        )


def _selected(terms: GroupTerms, rewards: Tensor) -> Tensor:
    """(R,) the role of each response; by reward in groups that have none."""
    has_roles = sum_responses(terms.role.abs().to(rewards), terms) > 0  # (G,)
    is_best = rewards == group_max(rewards, terms)[terms.group_of_response]
    by_reward = torch.where(is_best, 1, -1).to(terms.role)
    return torch.where(has_roles[terms.group_of_response], terms.role, by_reward)


def _group_logsumexp(scores: Tensor, members: Tensor, terms: GroupTerms) -> Tensor:
    """(G,) log of the sum of e^score over the members of each group."""
    scores = torch.where(members, scores, -torch.inf)
    largest = group_max(scores, terms)
    total = sum_responses((scores - largest[terms.group_of_response]).exp(), terms)
    return largest + total.log()
