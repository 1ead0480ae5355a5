"""DistiLLM-2: each epoch new answers of teacher and student to the same prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.rounds.loop import Loop
from alignment.rounds.round import Round
from alignment.rounds.store import here

ANCHOR_STEPS = 10
"""The steps of the first epoch that the anchors of the skew come from, as in the objective."""


@dataclass(frozen=True)
class DistiLLM2Resampled(Loop):
    """Draws an answer of the teacher and one of the student as it is now, and distils on both.

    Paper: DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs, arXiv 2503.07067: a
    round is an epoch over the same prompts, at temperature 0.8 and top-p 0.95 (`generate`). Both
    curricula go on from round to round: beta by the share of all epochs that is done, the skew
    from the second round on, with the anchors of the first.
    """

    objective: ClassVar[str] = "distillm2"
    builder: ClassVar[str | None] = "distill_pairs"
    asks: ClassVar[bool] = False
    fresh: ClassVar[bool] = False

    teacher: str = field(metadata={"help": "folder or hub id, of the student's tokenizer"})

    def data(self, at: Round) -> Path:
        """A pair of each prompt: the teacher's answer is chosen, the student's rejected."""
        teacher = here(self.teacher)
        student = at.policy.model
        return at.build(
            "distill_pairs",
            at.prompts,
            student_answers=at.generate(at.prompts, name="student"),
            teacher_answers=at.generate(at.prompts, name="teacher", model=teacher),
            teacher_model=teacher,
            model=student,
            epoch=at.number - 1,
        )

    def training(self, at: Round) -> Mapping[str, Any]:
        """The teacher, and where the curricula stand."""
        kwargs: dict[str, Any] = {
            "epochs_before": at.number - 1,
            "epochs_in_all": at.options.rounds,
        }
        if at.trained:
            kwargs |= anchors(at.trained[0] / "metrics.jsonl")
        return {"teacher_model_name_or_path": here(self.teacher), "objective_kwargs": kwargs}


def anchors(metrics: Path) -> dict[str, float]:
    """The mean gaps of the first steps of a run, or the first that it has logged.

    Raises:
        UserError: It has logged none.
    """
    logged = [row for _, row in read_rows(metrics) if "gaps/chosen" in row]
    if not logged:
        raise UserError(f"{metrics} has no gaps: set `train.logging_steps` to {ANCHOR_STEPS}")
    first = [row for row in logged if row["step"] <= ANCHOR_STEPS] or logged[:1]
    return {
        f"anchor_{role}": fmean(row[f"gaps/{role}"] for row in first)
        for role in ("chosen", "rejected")
    }
