"""Sequence-level knowledge distillation: the likelihood of what the teacher wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    mean_tokens,
    sum_responses,
)


@dataclass(frozen=True)
class SeqKD(Objective):
    """Fine-tunes on the teacher's responses (chosen); no teacher is run.

    Paper: Sequence-Level Knowledge Distillation, arXiv 1606.07947, with sampled responses.

    Formula: loss = - mean_t log q(y_t | x, y_<t), q the student; the mean over chosen responses.

    Differs: the mean is taken per response first, as in `seqkd` of the DistiLLM-2 code, so a long
    response weighs as much as a short one; `sft` takes one mean over all tokens.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"role"})
    roles: ClassVar[frozenset[int]] = frozenset({1})

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over chosen responses."""
        chosen = (terms.role > 0).to(terms.logps)
        losses = sum_responses(-chosen * mean_tokens(terms.logps, terms), terms)  # (G,)
        return ObjectiveOutput(
            terms=(LossTerm(losses, sum_responses(chosen, terms)),),
            parts={"per_example": losses},
        )
