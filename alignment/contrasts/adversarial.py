"""Contrast of opposite prompts, as in adversarial contrastive decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.contrasts.base import NEVER, Contrast, Second, check_range


@dataclass(frozen=True)
class Adversarial(Contrast):
    """Logits under a prompt for what is wanted, less those under its opposite.

    Paper: Adversarial Contrastive Decoding: Boosting Safety Alignment of Large Language Models via
    Opposite Prompt Optimization, arXiv 2406.16743.

    Formula: score = z_safe - alpha z_adv. There is no 1 + alpha: at arg max that is the same as a
    strength of alpha / (1 - alpha), while draws come from a flatter distribution.

    Differs: nothing. The two prompts are system prompts of yours, or the pair of soft prompts that
    `alignment soft_prompts` tunes.

    Attributes:
        alpha: Strength between 0 and 1; the paper's is 0.4 to 0.5.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"second_system", "soft_prompts"})

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", least=0.0, most=1.0)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The difference of the logits; tokens that the first pass rules out stay so."""
        ruled_out = first == NEVER
        return first - self.alpha * second.masked_fill(ruled_out, 0.0)
