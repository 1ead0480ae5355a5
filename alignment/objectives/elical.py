"""A confidence head: how sure a model should be of the answer it has just given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    count_responses,
    reward_labels,
    sum_responses,
)


@dataclass(frozen=True)
class EliCal(Objective):
    """Fits a confidence in [0, 1] to the targets that `alignment build elical` makes.

    The confidence is read by the value head at the last token of the answer, before the end of the
    turn. The text that the model writes with the adapter switched off is untouched.

    Paper: EliCal, arXiv 2510.17509, both stages: agreement of samples with the greedy answer first,
    correctness of a few answers after.

    Formula: loss = mean over responses of (sigmoid(v) - target)^2, v the value head's output.

    Differs: nothing known to us; the adapter is the recipe's (the paper's has rank 8 and alpha 16).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reward", "values"})

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over responses.

        Raises:
            ValueError: There are no values, or a target lies outside [0, 1].
        """
        if terms.values is None:
            raise ValueError("EliCal trains a confidence head, but `values` is missing")
        targets = reward_labels(terms).to(terms.values)
        if ((targets < 0) | (targets > 1)).any():
            raise ValueError("EliCal's rewards are confidences: they must lie between 0 and 1")
        lengths = torch.bincount(terms.response_of_token, minlength=terms.num_responses)
        confidences = terms.values[lengths.cumsum(0) - 1].sigmoid()  # (R,)
        errors = (confidences - targets).square()
        return ObjectiveOutput(
            terms=(LossTerm(sum_responses(errors, terms), count_responses(terms)),),
            metrics={
                "confidence/mean": Mean.of(confidences),
                "confidence/error": Mean.of((confidences - targets).abs()),
            },
            parts={"confidences": confidences},
        )
