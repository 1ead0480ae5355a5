"""The frozen models of objectives that need them: checked before anything is loaded, then loaded.

They are the teacher, and for a few methods a second teacher or a second reference.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.cli import UserError
from alignment.core.scoring import add_scored_forward, lacks_model, model_key
from alignment.core.tokenizers import check_same_tokenizer
from alignment.objectives.base import Objective
from alignment.trainers.config import GroupConfig
from alignment.trainers.loading import disable_dropout, load_model, load_tokenizer

logger = logging.getLogger(__name__)

Model: TypeAlias = "str | PreTrainedModel"


_NEED = {
    "teacher": "teacher",
    "second_teacher": "second_teacher",
    "second_ref_model": "second_reference",
}
"""What an objective calls each of the frozen models."""


class Frozen(NamedTuple):
    """The frozen models of a run, or their names, beside the reference.

    Attributes:
        teacher: What the student learns from.
        second_teacher: What the teacher is compared with.
        second_ref_model: A reference for the responses that the first one does not serve.
    """

    teacher: Model | None = None
    second_teacher: Model | None = None
    second_ref_model: Model | None = None

    def read_by(self, objective: Objective) -> dict[str, Model | None]:
        """Those that an objective reads, by name."""
        given = self._asdict().items()
        return {name: model for name, model in given if _NEED[name] in objective.needs}


def check_frozen(
    objective: Objective,
    model: Model,
    frozen: Frozen,
    tokenizer: PreTrainedTokenizerBase,
    args: GroupConfig,
) -> None:
    """Checks that there are the frozen models that are needed, and that they fit this policy.

    Args:
        objective: Whose needs decide.
        model: The policy, or its name.
        frozen: The models, or their names.
        tokenizer: The policy's; that of a model given by name must be the same.
        args: Settings.

    Raises:
        UserError: One is missing, the teacher is the student, the second teacher is the first, or
            one has another tokenizer.
    """
    for name, given in frozen.read_by(objective).items():
        if given is None:
            raise UserError(lacks_model(objective, name))
        if name == "teacher" and _same(given, model):
            raise UserError(f"the teacher is the student itself (`{given}`): name another model")
        if name == "second_teacher" and _same(given, frozen.teacher):
            raise UserError(
                f"the second teacher is the first (`{given}`), so their difference is nothing: "
                f"set `{model_key(name)}` to the model that the teacher started from"
            )
        check_tokenizer(given, _NEED[name], tokenizer, args)


def check_tokenizer(
    given: Model | None, need: str, tokenizer: PreTrainedTokenizerBase, args: GroupConfig
) -> None:
    """Checks that a frozen model that is given by name has the policy's tokenizer.

    Args:
        given: The model, or its name.
        need: What an objective calls it.
        tokenizer: The policy's.
        args: Settings.

    Raises:
        UserError: It has another.
    """
    if isinstance(given, str):
        roles = ("student" if "teacher" in need else "policy", need.replace("_", " "))
        other = load_tokenizer(given, args, is_policy=given == tokenizer.name_or_path)
        check_same_tokenizer(tokenizer, other, given, roles)


def load_frozen(
    objective: Objective, frozen: Frozen, args: GroupConfig
) -> dict[str, PreTrainedModel]:
    """The frozen models that the objective reads, by name and able to score packed batches.

    Args:
        objective: Whose needs decide.
        frozen: Models, or their paths or Hub ids.
        args: Settings.

    Raises:
        UserError: There is no such model.
    """
    read = frozen.read_by(objective)
    for name, given in frozen._asdict().items():
        if given is not None and name not in read:
            words, key = _NEED[name].replace("_", " "), model_key(name)
            logger.warning("%s reads no %s; `%s` is ignored", type(objective).__name__, words, key)
    return {name: _load(given, args) for name, given in read.items() if given is not None}


def _load(given: Model, args: GroupConfig) -> PreTrainedModel:
    model = load_model(given, args, is_policy=False) if isinstance(given, str) else given
    model.requires_grad_(False)
    disable_dropout(model)
    add_scored_forward(model)
    return model


def _same(one: Model, other: Model | None) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return _place(one) == _place(other)
    return one is other


def _place(model: str) -> str:
    """One name for all spellings of a folder; a Hub id as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model
