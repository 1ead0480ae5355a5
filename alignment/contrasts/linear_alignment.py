"""Linear alignment: a principle's effect on the logits, extrapolated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.contrasts.base import NEVER, Contrast, Second, check_range, move_away, nucleus


@dataclass(frozen=True)
class LinearAlignment(Contrast):
    """Logits under a principle moved further away from those of the plain prompt.

    Paper: Linear Alignment: A Closed-form Solution for Aligning Human Preferences without Tuning
    and Feedback, ICML 2024.

    Formula: score = (1 + rho) z_principle - rho z_plain in the top-p set of z_principle; minus
    infinity elsewhere.

    Differs: this is what the authors' simplified demonstration computes; it draws at temperature
    0.5. The paper derives its step in closed form, which is not implemented.

    Attributes:
        rho: Strength, at least 0; the default 1 is this project's.
        top_p: Mass of the set that is drawn from, 0.8 as in the demonstration; 1 keeps all.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"system"})

    rho: float = 1.0
    top_p: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "rho", least=0.0)
        check_range(self, "top_p", above=0.0, most=1.0)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The moved logits of the tokens in the set."""
        scores = move_away(first, second, self.rho)
        return scores if self.top_p == 1 else scores.masked_fill(~nucleus(first, self.top_p), NEVER)
