"""Comparisons of a student with what is kept of a teacher's distribution: its likeliest tokens.

ADPA's release stores the teachers' `k` largest probabilities and puts what is left into one bucket.
The floors below are its own. Everything here is about a few tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-8
"""Probabilities and clipped advantages lie between this and 1 minus this."""

STUDENT_FLOOR = 1e-7
"""Least probability of a student's bucket inside a logarithm, and of a teacher's token."""


class Bucketed(NamedTuple):
    """A comparison of n tokens.

    Attributes:
        value: (n, 1).
        push: (n, k), its derivative by the student's log-prob of each kept token.
    """

    value: Tensor
    push: Tensor


def bucketed_kl(log_p: Tensor, log_q: Tensor) -> Bucketed:
    """KL(p, q) over kept tokens and the bucket of all others.

    Args:
        log_p: (n, k) nats, the teacher's log-probs of the tokens that are kept.
        log_q: (n, k) nats, the student's log-probs of the same tokens.
    """
    q = log_q.exp()
    p = _with_rest(log_p.exp()).clamp(FLOOR, 1 - FLOOR)
    raw = _with_rest(q)
    floored = raw.clamp(STUDENT_FLOOR, 1 - FLOOR)
    moves = (raw == floored).to(q)
    ratio = moves * p / floored  # (n, k + 1), minus the derivative by each bucket
    value = (p * (p.log() - floored.log())).sum(1, keepdim=True)
    return Bucketed(value, q * (ratio[:, -1:] - ratio[:, :-1]))


def expected_advantage(log_q: Tensor, advantage: Tensor, clipped: bool) -> Bucketed:
    """The expectation of an advantage under the student.

    Args:
        log_q: (n, k) nats, the student's log-probs of the tokens that are kept.
        advantage: (n, k).
        clipped: Cuts probabilities and advantages as the release does, the bucket of all other
            tokens included, whose advantage is 0.
    """
    q = log_q.exp()
    if not clipped:
        terms = q * advantage
        return Bucketed(terms.sum(1, keepdim=True), terms)
    advantage = advantage.clamp(FLOOR, 1 - FLOOR)
    raw = _with_rest(q)
    bounded = raw.clamp(FLOOR, 1 - FLOOR)
    moves = (raw == bounded).to(q)
    value = (bounded[:, :-1] * advantage).sum(1, keepdim=True) + FLOOR * bounded[:, -1:]
    return Bucketed(value, q * (moves[:, :-1] * advantage - FLOOR * moves[:, -1:]))


def stored_advantage(log_p: Tensor, log_r: Tensor, kept: Tensor) -> Tensor:
    """(n, k) log p - log r with the release's floors.

    Args:
        log_p: (n, k) nats, the first teacher's log-probs of its likeliest tokens.
        log_r: (n, k) nats, the second teacher's log-probs of the same tokens.
        kept: (n, k) bool, which of them are among the second teacher's likeliest; for the others
            the first teacher's smallest kept probability stands in.
    """
    p = log_p.exp()
    r = torch.where(kept, log_r.exp(), p.amin(1, keepdim=True))
    return p.clamp(min=STUDENT_FLOOR).log() - r.clamp(min=STUDENT_FLOOR).log()


def _with_rest(probabilities: Tensor) -> Tensor:
    """(n, k) -> (n, k + 1), what is missing to 1 at the end."""
    return torch.cat([probabilities, 1 - probabilities.sum(1, keepdim=True)], 1)
