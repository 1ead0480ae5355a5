"""Training objectives: one method, one file, named after the method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from alignment.core.methods import available, load_method
from alignment.objectives.base import Objective

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


class Description(NamedTuple):
    """What the docstring of an objective says of it.

    Attributes:
        summary: Its first line.
        paper: Title, identifier and what of it is computed; None where there is none.
        formula: The formula in text; None where the docstring has none.
        arxiv: Identifiers of the papers on arXiv.
    """

    summary: str
    paper: str | None
    formula: str | None
    arxiv: tuple[str, ...]


def describe(objective: Objective) -> Description:
    """Reads the docstring of an objective's class, one of the user's own too."""
    parts = [
        " ".join(part.split()) for part in (inspect.getdoc(type(objective)) or "").split("\n\n")
    ]

    def section(title: str) -> str | None:
        found = (part.removeprefix(title).strip() for part in parts if part.startswith(title))
        return next(found, None)

    paper = section("Paper:")
    if paper is not None and paper.startswith("none"):
        paper = None
    return Description(parts[0], paper, section("Formula:"), tuple(_ARXIV.findall(paper or "")))


def available_objectives() -> list[str]:
    """The names that `objective:` takes in a recipe: the modules of this package."""
    return available(__name__)


def load_objective(name: str, kwargs: Mapping[str, Any] | None = None) -> Objective:
    """Builds the objective that a recipe names.

    Args:
        name: A module of `alignment.objectives` (`dpo`), or the dotted path of a class
            (`my_package.my_module.MyObjective`).
        kwargs: Its hyper-parameters.

    Raises:
        ValueError: The name is unknown, or a hyper-parameter is (the nearest known one is
            suggested), or a value is out of range.
    """
    # The base is abstract; a subclass is what is built.
    return load_method(__name__, "objective", Objective, name, kwargs)  # type: ignore[type-abstract]
