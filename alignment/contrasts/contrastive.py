"""Contrastive decoding by an expert and an amateur, Li et al."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from alignment.contrasts.base import NEVER, Contrast, Second, check_range, plausible


@dataclass(frozen=True)
class Contrastive(Contrast):
    """What an expert finds likely and an amateur does not, among what the expert finds plausible.

    Paper: Contrastive Decoding: Open-ended Text Generation as Optimization, arXiv 2210.15097.

    Formula: score = E - w log softmax(z_a) / t, with E = log softmax(z_e), where
    E >= max E + log alpha; minus infinity elsewhere.

    Differs: nothing from the authors' release in its three forms, which within a step differ by
    constants: `beam` as above, `sample` with z_a in place of its log-softmax, `greedy` with z_e in
    place of E too; the release masks nothing there (`alpha: null`) and keeps the two likeliest
    tokens in beam search. The defaults are the paper's formula with a mask in every form; the
    release's example has t = 0.5.

    Attributes:
        alpha: Plausibility: least share of the largest probability; null masks nothing.
        amateur_weight: w, at least 0.
        amateur_temperature: t, above 0.
        min_tokens_to_keep: Likeliest tokens that the mask always keeps.
        form: How the release writes it for `beam`, `sample` or `greedy` search.
    """

    second: ClassVar[frozenset[Second]] = frozenset({"amateur"})

    alpha: float | None = 0.1
    amateur_weight: float = 1.0
    amateur_temperature: float = 1.0
    min_tokens_to_keep: int = 1
    form: Literal["beam", "sample", "greedy"] = "beam"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            check_range(self, "alpha", least=0.0, most=1.0)
        check_range(self, "amateur_weight", least=0.0)
        check_range(self, "amateur_temperature", above=0.0)
        check_range(self, "min_tokens_to_keep", least=1)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The expert's score less the amateur's."""
        expert = first if self.form == "greedy" else first.log_softmax(-1)
        amateur = second.log_softmax(-1) if self.form == "beam" else second
        scores = expert - self.amateur_weight * amateur / self.amateur_temperature
        if self.alpha is not None:
            kept = plausible(expert, self.alpha, self.min_tokens_to_keep)
            scores = scores.masked_fill(~kept, NEVER)
        return scores
