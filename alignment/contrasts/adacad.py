"""Contrast of a prompt with its context and without, by as much as the two disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.contrasts.base import Contrast, Second, check_range, move_away, nucleus

_FILTERED = 1000.0
"""What the release gives filtered tokens in place of minus infinity."""


@dataclass(frozen=True)
class AdaCAD(Contrast):
    """Logits with a context moved away from those without, the further the more they differ.

    Paper: AdaCAD: Adaptively Decoding to Balance Conflicts between Contextual and Parametric
    Knowledge, arXiv 2409.07394.

    Formula: score = (1 + a) z_context - a z_plain, with a = max(JSD(p_context, p_plain),
    threshold); JSD is the Jensen-Shannon divergence in nats, 0 to log 2.

    Differs: each row of a batch has its own divergence; the release takes one sequence at a time.
    Its filters are off unless they are set: at top-p 1 they filter what rounding leaves.

    Attributes:
        threshold: Least strength, 0 to log 2; the release takes 0.3 for long answers.
        top_p: Tokens outside this mass of the context's distribution get logit -1000 before the
            two are mixed, as in the release; null filters nothing.
        top_p_plain: The same of the plain distribution, with +1000, which its weight turns round.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"second_column"})

    threshold: float = 0.0
    top_p: float | None = None
    top_p_plain: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "threshold", least=0.0, most=math.log(2))
        for name in ("top_p", "top_p_plain"):
            if getattr(self, name) is not None:
                check_range(self, name, above=0.0, most=1.0)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The mixture; the divergence is taken before the filters."""
        strength = self.strength(first, second)[..., None]
        if self.top_p is not None:
            first = first.masked_fill(~nucleus(first, self.top_p), -_FILTERED)
        if self.top_p_plain is not None:
            second = second.masked_fill(~nucleus(second, self.top_p_plain), _FILTERED)
        return move_away(first, second, strength)

    def strength(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) how far each row is moved: its divergence, at least the threshold."""
        return divergence(first, second).clamp(min=self.threshold)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """(B,) Jensen-Shannon divergence of two rows of logits (B, V), nats."""
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)

    def kl(logs: Tensor) -> Tensor:
        return (logs.exp() * (logs - log_m)).nan_to_num(0.0).sum(-1)

    return ((kl(log_p) + kl(log_q)) / 2).clamp(min=0.0)
