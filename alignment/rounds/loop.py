"""What a method of a loop is, and how the one that a recipe names is found."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.cli import UserError, parse, unknown
from alignment.core.methods import available
from alignment.llm.connect import load_dotted
from alignment.stages import option_words

if TYPE_CHECKING:
    from alignment.rounds.round import Round

PACKAGE = "alignment.loops"


class Loop(ABC):
    """How the rounds of a method make the data that they train on.

    A method is a dataclass in a file of `alignment/loops`; its fields are what a recipe sets under
    `method_kwargs`.

    Attributes:
        objective: What each round trains with.
        builder: The builder that the recipe's `build` is for; None where there is none.
        asks: Whether somebody is asked about answers, `builder_model`.
        fresh: Whether each round draws prompts that no round before has seen.
    """

    objective: ClassVar[str]
    builder: ClassVar[str | None] = None
    asks: ClassVar[bool] = True
    fresh: ClassVar[bool] = True

    @abstractmethod
    def data(self, at: Round) -> Path:
        """The file that a round trains on, made by the round's own means.

        Raises:
            UserError: As the commands do that make it.
        """

    def training(self, at: Round) -> Mapping[str, Any]:
        """Options of `alignment train` that depend on the round."""
        return {}

    def check(self, rounds: int) -> None:  # noqa: B027 - most methods have nothing to check
        """Refuses what cannot work, before any work.

        Raises:
            UserError: A setting does not fit the number of rounds, or a file is missing.
        """


def load_loop(name: str, kwargs: Mapping[str, Any]) -> Loop:
    """The method that a recipe names.

    Args:
        name: A file of `alignment/loops`, or the dotted path of a class.
        kwargs: Its settings.

    Raises:
        UserError: There is no such method, or a setting is unknown or of the wrong type.
    """
    if "." in name:
        found = load_dotted(name, "loop")
    else:
        known = available(PACKAGE)
        if name not in known:
            raise unknown("loop", name, known)
        module = importlib.import_module(f"{PACKAGE}.{name}")
        found = next(
            value
            for value in vars(module).values()
            if _is_loop(value) and value.__module__ == module.__name__
        )
    if not _is_loop(found):
        raise UserError(f"`{name}` is no subclass of {Loop.__module__}.Loop")
    loop: Loop = parse(found, list(map(str, option_words(kwargs))), f"method_kwargs of {name}")
    return loop


def _is_loop(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Loop) and value is not Loop
