"""Distributional dispreference: learning from negatives and the model's own samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    role_metrics,
    sum_responses,
    sum_tokens,
)


@dataclass(frozen=True)
class D2O(Objective):
    """Pushes a negative response down against the average of K samples of the start model.

    No response that anyone wrote as a good one is needed: role +1 is a self-sample, role -1 the
    negative. With one sample and alpha = beta it is DPO.

    Paper: Negating Negatives: Alignment with Human Negative Samples via Distributional
    Dispreference Optimization, arXiv 2403.03419, its loss.

    Formula: loss = -log sigmoid(beta/K sum_k log pi(y_k)/ref(y_k)
    - alpha log pi(y_neg)/ref+(y_neg)), the mean over groups.

    Differs: nothing. In the paper's experiments both references are the start model, which is
    `references: one`; `two` takes `second_ref_model_name_or_path` for ref+.

    Attributes:
        beta: Strength on the self-samples; the default 0.1 is the paper's.
        alpha: Strength on the negative; the default 0.1 is the paper's.
        references: `one`, or `two`: a second one for the negative.
    """

    roles: ClassVar[frozenset[int]] = frozenset({-1, 1})

    beta: float = 0.1
    alpha: float = 0.1
    references: Literal["one", "two"] = "one"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", least=0.0)
        check_range(self, "alpha", least=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        """One negative among self-samples, and one or two references."""
        needs: frozenset[Need] = frozenset({"reference", "one_rejected"})
        return needs | ({"second_reference"} if self.references == "two" else set())

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over groups."""
        ratios = sum_tokens(terms.logps - self._reference(terms), terms)  # (R,)
        is_sample = (terms.role > 0).to(ratios)
        samples = sum_responses(ratios * is_sample, terms) / sum_responses(is_sample, terms)  # (G,)
        negative = sum_responses(ratios * (terms.role < 0), terms)  # (G,)
        losses = -logsigmoid(self.beta * samples - self.alpha * negative)
        rewards = torch.where(terms.role < 0, self.alpha, self.beta) * ratios
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics={
                **role_metrics("rewards", rewards, terms),
                **role_metrics("logps", sum_tokens(terms.logps, terms), terms),
            },
            parts={"per_example": losses, "rewards": rewards},
        )

    def _reference(self, terms: GroupTerms) -> Tensor:
        """(N,) log-probs under the reference that serves each token's response."""
        if terms.ref_logps is None:
            raise ValueError("D2O compares with a reference, but `ref_logps` is missing")
        if self.references == "one":
            return terms.ref_logps
        if terms.second_ref_logps is None:
            raise ValueError("D2O has two references, but `second_ref_logps` is missing")
        is_negative = (terms.role < 0)[terms.response_of_token]
        return torch.where(is_negative, terms.second_ref_logps, terms.ref_logps)

    def initial_loss(self, terms: GroupTerms) -> float | None:
        """Where policy equals both references, every logit is 0."""
        return math.log(2) if self.references == "one" else None
