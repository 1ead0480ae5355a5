"""Means that add up exactly over batches and processes, and what is logged for every objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from alignment.objectives.base import GroupTerms, Mean, ObjectiveOutput, count_tokens, sum_tokens


class MeanLedger:
    """Sums and counts by name, kept on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, means: Mapping[str, Mean]) -> None:
        """Adds one batch."""
        for name, mean in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean.sum.detach()
            self._counts[name] = self._counts.get(name, 0.0) + mean.count.detach()

    def copy(self) -> MeanLedger:
        """What has been added so far, to come back to."""
        ledger = MeanLedger()
        ledger._sums, ledger._counts = dict(self._sums), dict(self._counts)
        return ledger

    def clear(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._counts.clear()

    def reduced(self, accelerator: Accelerator) -> dict[str, Mean]:
        """The means over all processes; each must call this, whatever names it has itself."""
        names = list(self._sums)
        if accelerator.num_processes > 1:
            names = sorted(set(gather_object(names)))
        if not names:
            return {}
        zero = torch.zeros((), device=accelerator.device)
        halves = torch.stack(
            [
                torch.stack([part.get(name, zero).double() for name in names])
                for part in (self._sums, self._counts)
            ]
        )
        sums, counts = accelerator.reduce(halves, reduction="sum")
        return {name: Mean(sums[i], counts[i]) for i, name in enumerate(names) if counts[i] > 0}


def term_means(output: ObjectiveOutput) -> dict[str, Mean]:
    """Sum and count of each loss term, by a name of its own."""
    return {
        f"term/{number}": Mean(term.sums.detach().sum(), term.counts.sum())
        for number, term in enumerate(output.terms)
    }


def pop_loss(means: dict[str, Mean], output: ObjectiveOutput) -> float:
    """The loss over all batches whose `term_means` were added, which are taken out of `means`.

    Args:
        means: Over all processes.
        output: Of any of the batches; tells the scale of each term.
    """
    nothing = Mean(torch.zeros(()), torch.zeros(()))
    halves = [means.pop(name, nothing) for name in term_means(output)]
    terms = [
        term._replace(sums=half.sum[None], counts=half.count[None])
        for term, half in zip(output.terms, halves, strict=True)
    ]
    return float(replace(output, terms=tuple(terms)).loss())


def response_metrics(terms: GroupTerms) -> dict[str, Mean]:
    """What tells where chosen and rejected responses move, for every objective.

    Returns:
        For each side that the labels name: `logps_per_token/chosen`, nats per token,
        `logps_last_token/chosen`, that of the token that ends a response, and with a reference
        `logratios/chosen`, summed over the response, and `logratios_per_token/chosen`; the same for
        `rejected`. Where no roles are given, chosen and rejected are the responses of highest and
        lowest reward. Judged views count for neither side.
    """
    metrics: dict[str, Mean] = {}
    logps, counts = sum_tokens(terms.logps.detach(), terms), count_tokens(terms)
    last = terms.logps.detach()[counts.long().cumsum(0) - 1]  # (R,)
    ratios = None
    if terms.ref_logps is not None:
        ratios = logps - sum_tokens(terms.ref_logps, terms)
    for side, chosen in _sides(terms).items():
        tokens = counts[chosen].sum()
        if tokens == 0:
            continue
        metrics[f"logps_per_token/{side}"] = Mean(logps[chosen].sum(), tokens)
        metrics[f"logps_last_token/{side}"] = Mean.of(last[chosen])
        if ratios is not None:
            metrics[f"logratios/{side}"] = Mean.of(ratios[chosen])
            metrics[f"logratios_per_token/{side}"] = Mean(ratios[chosen].sum(), tokens)
    return metrics


def _sides(terms: GroupTerms) -> dict[str, Tensor]:
    """(R,) masks of the chosen and the rejected responses."""
    if bool(terms.role.any()) or terms.reward is None:
        plain = terms.role.bool() if terms.twin is None else terms.twin < 0
        return {"chosen": plain & (terms.role == 1), "rejected": plain & (terms.role == -1)}
    best = _extreme(terms.reward, terms, "amax")
    worst = _extreme(terms.reward, terms, "amin")
    unequal = (best != worst)[terms.group_of_response]
    return {
        "chosen": unequal & (terms.reward == best[terms.group_of_response]),
        "rejected": unequal & (terms.reward == worst[terms.group_of_response]),
    }


def _extreme(values: Tensor, terms: GroupTerms, kind: str) -> Tensor:
    """(G,) the largest or smallest value of each group."""
    return values.new_zeros(terms.num_groups).scatter_reduce(
        0, terms.group_of_response, values, kind, include_self=False
    )
