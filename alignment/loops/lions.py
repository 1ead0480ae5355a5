"""LIONs' online DPO: the best against the worst of several samples, mixed with older pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from alignment.cli import UserError
from alignment.rounds.loop import Loop
from alignment.rounds.round import Round
from alignment.rounds.samples import VERSION, write_groups, write_mixture


@dataclass(frozen=True)
class LIONsOnlineDPO(Loop):
    """Draws several answers to each prompt, has them rated, and trains by DPO on best and worst.

    Paper: LIONs: An Empirically Optimized Approach to Align Language Models, arXiv 2407.06542; its
    released code for five samples, temperature 0.8 (`generate`), equal samples dropped, and the
    probabilities of keeping old pairs, which are 0 there.

    Differs: a judge's ratings stand in for PairRM's ranks.
    """

    objective: ClassVar[str] = "dpo"
    builder: ClassVar[str | None] = "reward_groups"

    samples: int = field(default=5, metadata={"help": "answers to each prompt"})
    old_pairs: Path | None = field(
        default=None, metadata={"help": "file of earlier pairs; those of earlier rounds count too"}
    )
    keep_pair: float = field(
        default=0.0, metadata={"help": "probability that a prompt's old pair replaces its new one"}
    )
    keep_chosen: float = field(
        default=0.0, metadata={"help": "probability that the old chosen side replaces the new one"}
    )
    old_share: float = field(
        default=0.0, metadata={"help": "old pairs that are added for each new one"}
    )

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"`samples` is {self.samples}; best and worst need at least 2")
        for name in ("keep_pair", "keep_chosen"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it is a probability")
        if self.old_share < 0:
            raise ValueError(f"`old_share` is {self.old_share}; it must be at least 0")

    def check(self, rounds: int) -> None:
        """Refuses old pairs that are not there."""
        if self.old_pairs is not None and not self.old_pairs.is_file():
            raise UserError(f"no such file of old pairs: {self.old_pairs}")

    def data(self, at: Round) -> Path:
        """Pairs of the best and the worst sample, mixed with older pairs."""
        answers = at.generate(at.prompts, samples=self.samples)
        settings = {"answers": answers, "version": VERSION}
        groups = at.rows("groups", lambda output: write_groups(output, answers), settings)
        judge = at.builder.options("judge_model", "judge_url")
        pairs = at.build("reward_groups", groups, pairs="best_worst", **judge)
        old = [*([self.old_pairs] if self.old_pairs else []), *at.earlier]
        how: dict[str, Any] = {
            **{"keep_pair": self.keep_pair, "keep_chosen": self.keep_chosen},
            **{"old_share": self.old_share, "seed": at.seed},
        }
        if not old or not any((self.keep_pair, self.keep_chosen, self.old_share)):
            return pairs
        return at.rows(
            "mixture",
            lambda output: write_mixture(output, pairs, old, **how),
            {"pairs": pairs, "old": old, **how, "version": VERSION},
        )
