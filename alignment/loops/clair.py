"""CLAIR on-policy: each round the model's own answers to new prompts, revised minimally."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment.rounds.loop import Loop
from alignment.rounds.round import Round


@dataclass(frozen=True)
class CLAIROnPolicy(Loop):
    """Answers new prompts, has a stronger model revise each answer, and trains by APO.

    Paper: Anchored Preference Optimization and Contrastive Revisions, arXiv 2408.06266. The paper
    has one round; that later ones start from the model of the round before is ours.
    """

    objective: ClassVar[str] = "apo"
    builder: ClassVar[str | None] = "clair"

    def data(self, at: Round) -> Path:
        """One answer to each prompt of the round against its revision."""
        answers = at.generate(at.prompts)
        return at.build("clair", answers, **at.builder.options("model", "base_url"))
