"""Contrast of two inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.contrasts.base import NEVER, Contrast, Second, check_range, move_away, plausible


@dataclass(frozen=True)
class Input(Contrast):
    """What is likely after one input and unlikely after another: what sets the two apart.

    Paper: Surfacing Biases in Large Language Models using Contrastive Input Decoding,
    arXiv 2305.07378. Meant for showing what a model makes of a difference, such as a name, rather
    than for alignment.

    Formula: score = (1 + strength) z(x) - strength z(x') where z(x) >= max z(x) + log alpha; minus
    infinity elsewhere.

    Differs: the paper is followed in its idea; the formula is this project's, that of O'Brien and
    Lewis on two inputs.

    Attributes:
        strength: How far the answers to the two inputs are pushed apart, at least 0.
        alpha: Plausibility between 0, which masks nothing, and 1.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"second_column"})

    strength: float = 0.5
    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "strength", least=0.0)
        check_range(self, "alpha", least=0.0, most=1.0)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The moved logits of plausible tokens."""
        scores = move_away(first, second, self.strength)
        return scores.masked_fill(~plausible(first, self.alpha), NEVER)
