"""Conditional training: the likelihood of text whose parts begin with the token of their class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignment.objectives.base import (
    GroupTerms,
    Mean,
    Objective,
    ObjectiveOutput,
    token_means,
)


@dataclass(frozen=True)
class Conditional(Objective):
    """Maximises the likelihood of every token, control tokens included.

    `alignment data condition` puts a control token before each scored segment, aligned or
    misaligned; a model asked to go on after the aligned one then writes what scored well.

    Paper: Pretraining Language Models with Human Preferences, arXiv 2302.08582, conditional
    training.

    Formula: loss = -mean over all response tokens of log pi.

    Differs: responses follow a prompt, which is not scored; the release trains on whole documents.
    """

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over tokens."""
        loss = token_means(-terms.logps, torch.ones_like(terms.logps), terms)
        return ObjectiveOutput(
            terms=(loss,), metrics={"nll_loss": Mean.ratio(loss.sums, loss.counts)}
        )
