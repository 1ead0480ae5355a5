"""Contrastive learning from a ranking, filtered by reward, with the likelihood of one response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    count_responses,
    mean_tokens,
    places,
    reward_labels,
    sum_responses,
    sum_tokens,
)


@dataclass(frozen=True)
class CLHA(Objective):
    """Ranks the responses of a group by their mean log-prob, where their rewards differ enough.

    Paper: CLHA: A Simple yet Effective Contrastive Learning Framework for Human Alignment,
    arXiv 2403.16649, the loss of its code.

    Formula: m = log pi per token, M = margin; for each rank distance d the mean over all pairs
    (k, k+d) with |R_k - R_(k+d)| > M of max(0, M d - (m_k - m_(k+d))); plus, with n the size of the
    group and s its demonstration, sft_weight (n-1)^2 times the mean over groups of
    1[R_s > 0] (-log pi(y_s)); the loss is the sum of all.

    Differs: every end-of-turn token is scored, where the release scores it only after responses
    that are shorter than the longest of the batch. `order: data` trusts the order of the row, as
    the release does; the default ranks by reward. The demonstration is the response of role +1, or
    the first of the ranking.

    Attributes:
        margin: The gap in reward that a pair must exceed, and the margin per rank in nats per
            token; the release has one constant for both, 3.
        sft_weight: Weight of the likelihood; 0.05 is that of the release's script.
        order: `reward`, best first and ties as they stand; or `data`.
        largest_group: Most responses that a group may have; each rank distance is a mean of its own
            over the global batch.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reward"})

    margin: float = 3.0
    sft_weight: float = 0.05
    order: Literal["reward", "data"] = "reward"
    largest_group: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "margin", least=0.0)
        check_range(self, "sft_weight", least=0.0)
        check_range(self, "largest_group", least=1)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean for each rank distance, and one over groups."""
        rewards = reward_labels(terms).to(terms.logps)
        scores = mean_tokens(terms.logps, terms)  # (R,)
        ranking = self._ranking(terms, rewards)
        ranks = tuple(
            self._rank(terms, ranking, rewards, scores, distance)
            for distance in range(1, self.largest_group)
        )
        likelihood = self._likelihood(terms, ranking, rewards)
        pairs = torch.cat([rewards.new_zeros(1), *(rank.counts for rank in ranks)])
        return ObjectiveOutput(
            terms=(*ranks, likelihood),
            metrics={
                "clha/pairs": Mean.ratio(pairs, count_responses(terms)),
                "nll_loss": Mean.ratio(likelihood.sums, likelihood.counts),
            },
            parts={"mean_logps": scores},
        )

    def _ranking(self, terms: GroupTerms, rewards: Tensor) -> Tensor:
        """(R,) int64, the responses group by group, best first.

        Raises:
            ValueError: A group is larger than `largest_group`.
        """
        largest = int(count_responses(terms).max())
        if largest > self.largest_group:
            raise ValueError(
                f"CLHA.largest_group is {self.largest_group}, but a group has {largest} responses: "
                "raise it"
            )
        listed = torch.arange(terms.num_responses, device=rewards.device)
        if self.order == "data":
            return listed
        best_first = rewards.argsort(descending=True, stable=True)
        return best_first[terms.group_of_response[best_first].argsort(stable=True)]

    def _rank(
        self, terms: GroupTerms, ranking: Tensor, rewards: Tensor, scores: Tensor, distance: int
    ) -> LossTerm:
        better, worse = ranking[:-distance], ranking[distance:]
        group = terms.group_of_response[better]
        differ = (rewards[better] - rewards[worse]).abs() > self.margin
        counted = differ & (group == terms.group_of_response[worse])
        losses = (self.margin * distance - (scores[better] - scores[worse])).relu()
        sums, counts = (
            scores.new_zeros(terms.num_groups).index_add(0, group, part)
            for part in (torch.where(counted, losses, 0.0), counted.to(scores))
        )
        return LossTerm(sums, counts)

    def _likelihood(self, terms: GroupTerms, ranking: Tensor, rewards: Tensor) -> LossTerm:
        first = ranking[places(terms) == 0]  # (G,)
        marked = sum_responses((terms.role > 0).to(rewards), terms) > 0  # (G,)
        index = torch.arange(terms.num_responses, device=ranking.device)
        is_first = index == first[terms.group_of_response]
        is_shown = torch.where(marked[terms.group_of_response], terms.role > 0, is_first)
        liked = (is_shown & (rewards > 0)).to(rewards)
        losses = -sum_responses(liked * sum_tokens(terms.logps, terms), terms)  # (G,)
        return LossTerm.mean((count_responses(terms) - 1).square() * losses, self.sft_weight)
