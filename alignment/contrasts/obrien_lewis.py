"""Contrastive decoding of logits, O'Brien and Lewis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.contrasts.base import NEVER, Contrast, Second, check_range, move_away, plausible


@dataclass(frozen=True)
class OBrienLewis(Contrast):
    """The expert's logits moved away from the amateur's, among what the expert finds plausible.

    Paper: Contrastive Decoding Improves Reasoning in Large Language Models, arXiv 2309.09117.

    Formula: score = (1 + beta) z_e - beta z_a where z_e >= max z_e + log alpha; minus infinity
    elsewhere. The result is p_e (p_e / p_a)^beta up to a constant.

    Differs: nothing. The paper prints 1 / alpha in its valid set; its proof and code have alpha.

    Attributes:
        beta: Strength, at least 0; 0.5 is the paper's.
        alpha: Plausibility between 0, which masks nothing, and 1; 0.1 is the paper's.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"amateur"})

    beta: float = 0.5
    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", least=0.0)
        check_range(self, "alpha", least=0.0, most=1.0)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The moved logits of plausible tokens."""
        scores = move_away(first, second, self.beta)
        return scores.masked_fill(~plausible(first, self.alpha), NEVER)
