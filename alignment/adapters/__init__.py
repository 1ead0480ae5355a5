"""Adapters that peft lacks: one method, one file, named after the method.

Importing this package makes them known to peft, which then reads and writes them like its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from alignment.adapters.base import AdapterConfig
from alignment.cli import UserError, unknown
from alignment.core.methods import available


def available_adapters() -> list[str]:
    """The names that `adapter:` takes in a recipe: the modules of this package."""
    return available(__name__)


def adapter_config(name: str, kwargs: Mapping[str, Any] | None = None) -> AdapterConfig:
    """The configuration of the fresh adapter that a recipe names.

    Args:
        name: A module of `alignment.adapters` (`clm`).
        kwargs: Its settings.

    Raises:
        UserError: There is no such adapter, or it has no such setting, or a value is out of range.
    """
    if name not in available_adapters():
        raise unknown("adapter", name, available_adapters())
    cls: type[AdapterConfig] = importlib.import_module(f"{__name__}.{name}").CONFIG
    own = {field.name for field in fields(cls)} & {*cls.__annotations__}
    settings = own - {*cls.when_used}
    for key in kwargs or {}:
        if key in cls.when_used:
            raise UserError(
                f"adapter_kwargs.{key} is set when the adapter is used, not when it is trained: "
                "pass it to `alignment generate` or `alignment merge`"
            )
        if key not in settings:
            raise unknown("key of adapter_kwargs", key, settings)
    try:
        return cls(task_type="CAUSAL_LM", **(kwargs or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"adapter_kwargs: {error}") from None


for _name in available_adapters():
    importlib.import_module(f"{__name__}.{_name}")
