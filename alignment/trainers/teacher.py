"""The teacher of objectives that need one: checked before anything is loaded, then loaded."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model

from alignment.cli import UserError
from alignment.core.scoring import add_scored_forward
from alignment.objectives.base import Objective
from alignment.trainers.config import GroupConfig
from alignment.trainers.loading import load_model, load_tokenizer

logger = logging.getLogger(__name__)


def check_teacher(
    objective: Objective,
    model: str | PreTrainedModel,
    teacher: str | PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    args: GroupConfig,
) -> None:
    """Checks that there is a teacher where one is needed, and that it can teach this student.

    Args:
        objective: Whose needs decide.
        model: The student, or its name.
        teacher: The teacher, or its name.
        tokenizer: The student's; that of a teacher given by name must be the same.
        args: Settings.

    Raises:
        UserError: There is none, it is the student, or it has another tokenizer.
    """
    name = type(objective).__name__
    if "teacher" not in objective.needs:
        return
    if teacher is None:
        raise UserError(f"{name} needs a teacher: set `teacher_model_name_or_path`")
    if teacher is model or (
        isinstance(teacher, str) and isinstance(model, str) and _place(teacher) == _place(model)
    ):
        raise UserError(f"the teacher is the student itself (`{teacher}`): name another model")
    if isinstance(teacher, str):
        check_same_tokenizer(tokenizer, load_tokenizer(teacher, args), teacher)


def load_teacher(
    objective: Objective, teacher: str | PreTrainedModel | None, args: GroupConfig
) -> PreTrainedModel | None:
    """The frozen teacher, able to score packed batches; None where the objective reads none.

    Args:
        objective: Whose needs decide.
        teacher: A model, or its path or Hub id.
        args: Settings.

    Raises:
        UserError: There is no such model.
    """
    if teacher is None:
        return None
    if "teacher" not in objective.needs:
        name = type(objective).__name__
        logger.warning("%s reads no teacher; `teacher_model_name_or_path` is ignored", name)
        return None
    model = load_model(teacher, args) if isinstance(teacher, str) else teacher
    model.requires_grad_(False)
    disable_dropout_in_model(model)
    add_scored_forward(model)
    return model


def check_same_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str
) -> None:
    """Compares two vocabularies id by id; rows that only pad one of them do not count.

    Raises:
        UserError: They differ; the first ten differences are named.
    """
    own = {index: token for token, index in student.get_vocab().items()}
    other = {index: token for token, index in teacher.get_vocab().items()}
    common = range(min(max(own), max(other)) + 1)
    differing = [i for i in common if own.get(i) != other.get(i)]
    if differing:
        shown = ", ".join(f"{i}: {own.get(i)!r} / {other.get(i)!r}" for i in differing[:10])
        raise UserError(
            f"teacher `{name}` has another tokenizer than the student; {len(differing)} ids "
            f"differ, the first as student / teacher: {shown}; choose a teacher of the same family"
        )


def _place(model: str) -> str:
    """One name for all spellings of a folder; a Hub id as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model
