"""Panacea: preferences in several dimensions, weighed anew at every step."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment.objectives.base import (
    Group,
    GroupTerms,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    Progress,
    alone,
    best_and_worst,
    check_range,
    implicit_rewards,
)


@dataclass(frozen=True)
class Panacea(Objective):
    """DPO in each dimension, summed by a preference that also steers the adapter.

    Paper: Panacea: Pareto Alignment via Preference Adaptation for LLMs, arXiv 2402.02030.

    Formula: loss = sum_i lambda_i L_i, with lambda drawn from the simplex for every optimiser step
    and L_i the mean of - log sigmoid(r_best - r_worst) over the groups whose responses differ in
    dimension i, best and worst by their labels there; r = beta (log pi(y|x) - log pi_ref(y|x)), and
    pi the policy with its adapter steered by the same lambda.

    Differs: the form is reconstructed from summaries. Lambda is drawn evenly, by seed and step, so
    that all processes draw the same; an evaluation weighs all dimensions alike. The other form of
    the paper, by the largest loss of a dimension, is no sum over groups and is not offered.

    Attributes:
        dimensions: How many dimensions the data judges and the adapter has.
        beta: Strength of the pull towards the reference.
        seed: Of the preferences.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "aspects"})

    dimensions: int = 2
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "dimensions", least=2)
        check_range(self, "beta", above=0.0)

    def steering(self, progress: Progress) -> tuple[float, ...]:
        """The weight of each dimension at a step; they add up to one."""
        if progress.evaluating:
            return (1 / self.dimensions,) * self.dimensions
        rng = random.Random(f"{self.seed}:{progress.step}")
        drawn = [rng.expovariate(1.0) for _ in range(self.dimensions)]
        return tuple(weight / math.fsum(drawn) for weight in drawn)

    def misfit(self, group: Group) -> str | None:
        """A single response: no dimension has a best and a worst."""
        return alone(group)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over groups for each dimension."""
        rewards = implicit_rewards(self.beta, terms)  # (R,)
        weights = self.steering(terms.progress)
        losses: list[LossTerm] = []
        metrics: dict[str, Mean] = {}
        for index, weight in enumerate(weights):
            best, worst = _pairs(terms, index)
            margins = rewards[best] - rewards[worst]  # (G',)
            group = terms.group_of_response[best]
            sums = margins.new_zeros(terms.num_groups).index_add(0, group, -logsigmoid(margins))
            counts = torch.bincount(group, minlength=terms.num_groups).to(sums)
            losses.append(LossTerm(sums, counts, weight))
            metrics |= {
                f"loss/dimension_{index}": Mean.ratio(sums, counts),
                f"rewards/accuracies_{index}": Mean.of((margins > 0).to(margins)),
            }
        parts = {"rewards": rewards, "preference": rewards.new_tensor(weights)}
        return ObjectiveOutput(terms=tuple(losses), metrics=metrics, parts=parts)

    def initial_loss(self, terms: GroupTerms) -> float:
        """At zero margins ln 2 for every dimension that the batch has pairs in."""
        weights = self.steering(terms.progress)
        there = (w for i, w in enumerate(weights) if len(_pairs(terms, i)[0]))
        return math.log(2.0) * math.fsum(there)


def _pairs(terms: GroupTerms, dimension: int) -> tuple[Tensor, Tensor]:
    """Response indices of best and worst in one dimension, of groups that are judged there.

    Raises:
        ValueError: The terms carry no such dimension.
    """
    if terms.aspects is None or dimension >= terms.aspects.shape[1]:
        raise ValueError("this objective weighs dimensions, but `aspects` has not enough of them")
    labels = terms.aspects[:, dimension]
    unknown = labels.new_zeros(terms.num_groups).index_add(
        0, terms.group_of_response, labels.isnan().to(labels)
    )
    judged = unknown[terms.group_of_response] == 0
    return best_and_worst(replace(terms, reward=torch.where(judged, labels, 0.0)))
