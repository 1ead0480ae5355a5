"""Reward-guided search, ARGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.contrasts.base import NEVER, Contrast, Second, check_range


@dataclass(frozen=True)
class ARGS(Contrast):
    """Logits plus the reward of the text that each of the likeliest tokens would make.

    Paper: ARGS: Alignment as Reward-Guided Search, arXiv 2402.01694.

    Formula: score(v) = z(v) + weight r(x, y, v) for the top_k largest logits; minus infinity
    elsewhere. Greedy, or a draw from softmax(score / temperature).

    Differs: rows of a batch choose their tokens on their own; the release takes one sequence at a
    time. The reward's scale is not set against that of the logits, as in the release.

    Attributes:
        top_k: Candidates at each step, at least 1; the release's is 10.
        weight: Of the reward, at least 0; the release's is 1.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"reward_model"})

    top_k: int = 10
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "top_k", least=1)
        check_range(self, "weight", least=0.0)

    def candidates(self, first: Tensor) -> Tensor:
        """(B, k) the tokens whose reward is asked for, the likeliest first."""
        return first.topk(min(self.top_k, first.shape[-1])).indices

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of the candidates.

        Args:
            first: (B, V) logits.
            second: (B, V) rewards; those of other tokens than the candidates are not read.
        """
        chosen = self.candidates(first)
        scores = first + self.weight * second
        return first.new_full(first.shape, NEVER).scatter(-1, chosen, scores.gather(-1, chosen))
