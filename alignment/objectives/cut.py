"""Contrastive unlikelihood training: learning from judgments in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.objectives.base import (
    Group,
    GroupTerms,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    count_tokens,
    log_complement,
    response_means,
    sum_tokens,
    twin_tokens,
)

LOG_GUARD = math.log(1e-5)


@dataclass(frozen=True)
class CUT(Objective):
    """Unlearns the tokens that a judgment explains, and learns the rest.

    A judged response is read twice: with the judgment in its prompt and without. Where the judgment
    makes a token more likely, it is what the judgment complains about.

    Paper: Reasons to Reject? Aligning Language Models with Judgments, arXiv 2312.14591, the losses
    L1 and L2.

    Formula: for a judged record of N tokens, with p+ = p(y_t | x, j) and p- = p(y_t | x), a token
    is selected if p+ / p- > threshold; L1 = -(1/N) (sum over unselected tokens of log p- + sum over
    selected ones of weight p+^gamma log(1 - p-)), L2 = -(1/N) sum of log p+; for a record without
    judgment both are -(1/N) sum of log p-; loss = L1 + L2, the mean over records.

    Differs: p+^gamma is held constant in the backward pass, as selection is; the paper is silent.
    `dynamic_weight: constant` drops it, as the release does. `normalisation: release` is the
    release's loss: both parts are means over all tokens of the batch, L1 over judged records only,
    averaged where anything is judged; the first judged record's weight is taken for all records
    of a forward pass. Log-probs come from a log-softmax, where the release turns NaN.

    Attributes:
        threshold: Ratio above which a token is selected; 1.1 is the release's, within the paper's
            search.
        weight: Factor on selected tokens, times the record's own weight where the data has one; 1
            is the release's, within the paper's search.
        gamma: Exponent of the dynamic weight, within the paper's search.
        dynamic_weight: `paper` or `constant`.
        normalisation: `paper` or `release`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"twin"})

    threshold: float = 1.1
    weight: float = 1.0
    gamma: float = 1.0
    dynamic_weight: Literal["paper", "constant"] = "paper"
    normalisation: Literal["paper", "release"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "threshold", least=0.0)
        check_range(self, "weight", least=0.0)
        check_range(self, "gamma", least=0.0)

    def misfit(self, group: Group) -> str | None:
        """A rejected response without a judgment, which would be learnt by likelihood."""
        judged = {response.twin for response in group.responses}
        for index, response in enumerate(group.responses):
            if response.role < 0 and response.twin is None and index not in judged:
                return (
                    "learns responses without a judgment by likelihood and this row has a "
                    "rejected one: judge it, or leave it out"
                )
        return None

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """The likelihood under the judgment, and the contrast with the plain prompt."""
        judged, plain = twin_tokens(terms)  # (n,), (n,)
        view = terms.response_of_token[judged]
        with_judgment, without = terms.logps[judged].detach(), terms.logps[plain]
        selected = (with_judgment - without.detach()).exp() > self.threshold
        weights = self._weights(terms, view)
        if self.dynamic_weight == "paper":
            weights = weights * (self.gamma * with_judgment).exp()
        losses = torch.where(
            selected, -weights * log_complement(without, LOG_GUARD), -_guarded(without)
        )

        nll = -sum_tokens(terms.logps, terms)  # (R,)
        contrast = torch.zeros_like(nll).index_add(0, view, losses)  # (R,)
        positive, is_judged = _records(terms)  # (R,), (R,)
        tokens = count_tokens(terms)
        if self.normalisation == "release":
            loss_terms = (
                response_means(nll, tokens, positive, terms),
                response_means(contrast, tokens, is_judged, terms),
            )
        else:
            contrast = torch.where(is_judged, contrast, nll)
            one = torch.ones_like(tokens)
            loss_terms = (
                response_means(nll / tokens, one, positive, terms),
                response_means(contrast / tokens, one, positive, terms),
            )
        return ObjectiveOutput(
            terms=loss_terms,
            metrics={"cut/selected": Mean.of(selected.to(without))},
            parts={"selected": selected, "view": view},
            averages_terms=self.normalisation == "release",
        )

    def _weights(self, terms: GroupTerms, view: Tensor) -> Tensor:
        """(n,) factor of each judged token, were it selected."""
        if terms.weight is None:
            return terms.logps.new_full(view.shape, self.weight)
        if self.normalisation == "release":
            view = view[:1].expand_as(view)
        return self.weight * terms.weight[view].to(terms.logps)


def _records(terms: GroupTerms) -> tuple[Tensor, Tensor]:
    """(R,) where a record is learnt from, its judged view if it has one; (R,) judged views."""
    if terms.twin is None:
        is_judged = torch.zeros_like(terms.role, dtype=torch.bool)
        return ~is_judged, is_judged
    is_judged = terms.twin >= 0
    positive = torch.ones_like(is_judged)
    positive[terms.twin[is_judged]] = False
    return positive, is_judged


def _guarded(logps: Tensor) -> Tensor:
    """The log-prob itself; the release's constant, without gradient, where p is exactly 0."""
    return logps.masked_fill(logps == -torch.inf, LOG_GUARD)
