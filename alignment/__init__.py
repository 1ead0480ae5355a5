"""Align language models from contrasts: build preference data, train on it, evaluate the result."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment.core.groups import Group, Response
    from alignment.llm.engine import LLM
    from alignment.objectives.base import GroupTerms, LossTerm, Objective
    from alignment.trainers.base import GroupTrainer
    from alignment.trainers.config import GroupConfig

__version__ = "0.1.0"

_HOMES = {
    "LLM": "alignment.llm.engine",
    "Group": "alignment.core.groups",
    "Response": "alignment.core.groups",
    "GroupTerms": "alignment.objectives.base",
    "LossTerm": "alignment.objectives.base",
    "Objective": "alignment.objectives.base",
    "GroupConfig": "alignment.trainers.config",
    "GroupTrainer": "alignment.trainers.base",
}

__all__ = [
    "LLM",
    "Group",
    "GroupConfig",
    "GroupTerms",
    "GroupTrainer",
    "LossTerm",
    "Objective",
    "Response",
]


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module `alignment` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)
