"""CUT online: each round the model's own answers to new prompts, with a judge's words on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment.rounds.loop import Loop
from alignment.rounds.round import Round


@dataclass(frozen=True)
class CUTOnline(Loop):
    """Answers new prompts, has a judge say what is wrong with each answer, and trains by CUT.

    Paper: Reasons to Reject? Aligning Language Models with Judgments, arXiv 2312.14591, its online
    setting: 1,000 new prompts a round, five rounds, of which the fifth helped no more.

    Of the answers without fault a quarter as many are kept as there are others, and judgments that
    are placeholders of failed calls are rejected; `build` sets both as `alignment build judgments`
    does.
    """

    objective: ClassVar[str] = "cut"
    builder: ClassVar[str | None] = "judgments"

    def data(self, at: Round) -> Path:
        """One answer to each prompt of the round, judged."""
        answers = at.generate(at.prompts)
        return at.build("judgments", answers, **at.builder.options("judge_model", "judge_url"))
