"""The contract of a contrast: the scores of one decoding step from what two passes say.

A contrast is a pure function of two tensors (B, V): the logits of the first pass, which is the
model that answers, and those of a second one, which is another model, or the same model under
other words. It sees neither models nor prompts nor caches. Its result goes into arg max or softmax;
minus infinity marks tokens that may not be chosen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from alignment.core.methods import check_kinds
from alignment.core.methods import check_range as check_range  # for contrasts, from one place

Second = Literal[
    "amateur", "system", "second_system", "second_column", "soft_prompts", "reward_model"
]
"""Options of `alignment generate` that make the second pass another one than the first."""

NEVER = -math.inf
"""The score of a token that may not be chosen."""


@dataclass(frozen=True)
class Contrast(ABC):
    """How two passes decide on the next token. Its fields are the method's hyper-parameters.

    Attributes:
        second: The options of which one has to be given: where the second pass may come from.

    Raises:
        ValueError: A hyper-parameter is of the wrong kind; field, value and remedy are named.
    """

    second: ClassVar[frozenset[Second]] = frozenset(
        {"amateur", "system", "second_system", "second_column", "soft_prompts"}
    )

    def __post_init__(self) -> None:
        check_kinds(self)

    @abstractmethod
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            first: (B, V) logits of the first pass, in floating point.
            second: (B, V) logits of the second pass, in the same type.

        Returns:
            (B, V) scores; their softmax is what is drawn from.
        """


def move_away(first: Tensor, second: Tensor, strength: float | Tensor) -> Tensor:
    """(B, V) `(1 + strength) first - strength second`, exactly `first` where the two agree.

    Tokens that the first pass rules out stay ruled out.
    """
    ruled_out = first == NEVER
    return first + strength * (first - second).masked_fill(ruled_out, 0.0)


def plausible(logits: Tensor, alpha: float, min_tokens_to_keep: int = 1) -> Tensor:
    """(B, V) which tokens have at least `alpha` times the largest probability.

    Args:
        logits: (B, V).
        alpha: Between 0, which keeps all, and 1, which keeps the likeliest.
        min_tokens_to_keep: The likeliest of a row that are kept whatever their probability.
    """
    cut = logits.amax(-1, keepdim=True) + (math.log(alpha) if alpha > 0 else NEVER)
    if min_tokens_to_keep > 1:
        count = min(min_tokens_to_keep, logits.shape[-1])
        cut = cut.minimum(logits.topk(count).values[..., -1:])
    return logits >= cut


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(B, V) which tokens are needed, from the likeliest on, to reach the probability `top_p`."""
    ordered, order = logits.sort(descending=True, stable=True)
    reached = ordered.softmax(-1).cumsum(-1) >= top_p
    kept = ~reached.roll(1, -1)
    kept[..., 0] = True
    return kept.new_zeros(kept.shape).scatter(-1, order, kept)
