"""Batches for tests of objectives, written reply by reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alignment.objectives.base import GroupTerms, Objective


@dataclass(frozen=True)
class Reply:
    """One response: log-probs of its tokens under each model, and its labels.

    `ref`, `teacher` and `second_ref` default to the policy's own log-probs, `values` and the labels
    of tokens to zeros. `twin` counts within the group.
    """

    logps: Sequence[float]
    ref: Sequence[float] | None = None
    teacher: Sequence[float] | None = None
    role: int = 0
    reward: float = 0.0
    weight: float = 1.0
    twin: int = -1
    mark: Sequence[int] | None = None
    score: Sequence[float] | None = None
    values: Sequence[float] | None = None
    second_ref: Sequence[float] | None = None
    aspects: Sequence[float] = (0.0, 0.0)


def chosen(*logps: float, ref: Sequence[float] | None = None) -> Reply:
    return Reply(logps, ref, role=1)


def rejected(*logps: float, ref: Sequence[float] | None = None) -> Reply:
    return Reply(logps, ref, role=-1)


def batch(*groups: Sequence[Reply]) -> GroupTerms:
    """The float64 terms of some groups, with log-probs that carry gradient."""
    replies = [reply for group in groups for reply in group]
    sizes = torch.tensor([len(group) for group in groups])
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    twin = torch.tensor([reply.twin for reply in replies])
    return GroupTerms(
        logps=_flat([reply.logps for reply in replies]).requires_grad_(),
        ref_logps=_flat([reply.ref or reply.logps for reply in replies]),
        second_ref_logps=_flat([reply.second_ref or reply.logps for reply in replies]),
        teacher_logps=_flat([reply.teacher or reply.logps for reply in replies]),
        mark=_flat([reply.mark or [0] * len(reply.logps) for reply in replies]).long(),
        score=_flat([reply.score or [0.0] * len(reply.logps) for reply in replies]),
        values=_flat([reply.values or [0.0] * len(reply.logps) for reply in replies]),
        response_of_token=torch.arange(len(replies)).repeat_interleave(
            torch.tensor([len(reply.logps) for reply in replies])
        ),
        group_of_response=torch.arange(len(groups)).repeat_interleave(sizes),
        role=torch.tensor([reply.role for reply in replies]),
        reward=_flat([[reply.reward for reply in replies]]),
        weight=_flat([[reply.weight for reply in replies]]),
        aspects=torch.tensor([list(reply.aspects) for reply in replies], dtype=torch.float64),
        twin=torch.where(twin >= 0, first + twin, -1),
    )


def pair_batch(
    chosen_logps: Sequence[float],
    rejected_logps: Sequence[float],
    ref_chosen_logps: Sequence[float] | None = None,
    ref_rejected_logps: Sequence[float] | None = None,
) -> GroupTerms:
    """Pairs whose responses are one token each."""
    ref_chosen, ref_rejected = (
        ref_chosen_logps or chosen_logps,
        ref_rejected_logps or rejected_logps,
    )
    rows = zip(chosen_logps, rejected_logps, ref_chosen, ref_rejected, strict=True)
    return batch(*[(chosen(w, ref=[rw]), rejected(y, ref=[ry])) for w, y, rw, ry in rows])


def score_batch(
    logps: Sequence[Sequence[float]],
    ref_logps: Sequence[Sequence[float]],
    rewards: Sequence[Sequence[float]],
) -> GroupTerms:
    """Scored groups whose responses are one token each; groups may differ in size."""
    rows = zip(logps, ref_logps, rewards, strict=True)
    return batch(
        *[[Reply([p], [r], reward=u) for p, r, u in zip(*row, strict=True)] for row in rows]
    )


def gradcheck(objective: Objective, terms: GroupTerms) -> bool:
    """Whether autograd agrees with finite differences of the loss, in float64."""

    def loss(logps: Tensor) -> Tensor:
        return objective(replace(terms, logps=logps)).loss()

    return torch.autograd.gradcheck(loss, (terms.logps,))


def gradient(objective: Objective, terms: GroupTerms) -> list[float]:
    """The gradient of the loss with respect to each token's log-prob."""
    (grad,) = torch.autograd.grad(objective(terms).loss(), terms.logps)
    values: list[float] = grad.tolist()
    return values


def _flat(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)
