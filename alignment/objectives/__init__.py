"""Training objectives: one method, one file, named after the method."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

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
    package = importlib.import_module(__name__)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


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
    if "." in name:
        cls = _imported(name)
    else:
        known = available_objectives()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"objective `{name}` is unknown: {hint}Known: {', '.join(known)}")
        module = importlib.import_module(f"{__name__}.{name}")
        cls = next(
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, Objective)
            and value.__module__ == module.__name__
        )
    known_fields = [f.name for f in fields(cls)]
    for key in kwargs or {}:
        if key not in known_fields:
            near = difflib.get_close_matches(key, known_fields, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`? " if near else ""
            takes = ", ".join(known_fields) or "nothing"
            raise ValueError(
                f"objective_kwargs.{key}: `{name}` has no such parameter; {hint}It takes: {takes}"
            )
    objective: Objective = cls(**(kwargs or {}))
    return objective


def _imported(path: str) -> Any:
    """The objective class at a dotted path."""
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"objective `{path}` cannot be imported: {error}; it must be the dotted path of a class"
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, Objective)):
        raise ValueError(f"objective `{path}` is not a subclass of alignment.Objective")
    return cls
