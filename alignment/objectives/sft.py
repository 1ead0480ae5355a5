"""Supervised fine-tuning: the likelihood of the responses worth imitating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Objective,
    ObjectiveOutput,
    count_tokens,
    sum_responses,
    sum_tokens,
)


@dataclass(frozen=True)
class SFT(Objective):
    """Negative log-likelihood of every response that is not rejected, as a mean over tokens.

    Paper: none; the language modelling loss that every method here starts from.

    Formula: loss = - sum_t log pi(y_t | x, y_<t) / number of tokens, over responses of role >= 0.

    Differs: nothing from TRL's `SFTTrainer` on completions. It is one token mean over the global
    batch, so a long response weighs more than a short one.
    """

    roles: ClassVar[frozenset[int]] = frozenset({0, 1})

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One token mean over the responses of role +1 and 0."""
        imitated = (terms.role >= 0).to(terms.logps)  # (R,)
        nll = -imitated * sum_tokens(terms.logps, terms)
        tokens = imitated * count_tokens(terms)
        return ObjectiveOutput((LossTerm(sum_responses(nll, terms), sum_responses(tokens, terms)),))
