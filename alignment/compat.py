"""Every difference between the versions that pyproject.toml admits, and nothing else."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any


def name_checkpointing(args: Any) -> None:
    """Gives checkpointing the names that the installed transformers reads.

    That of 5.23 calls its arguments `activation_checkpointing*` and keeps the old names in step
    itself; to that of 5.17, `gradient_checkpointing*` are all there is.

    Args:
        args: Training arguments with both names, not yet completed by transformers.
    """
    base = next(kind for kind in type(args).__mro__ if kind.__name__ == "TrainingArguments")
    if any(field.name == "activation_checkpointing" for field in dataclasses.fields(base)):
        return
    for old, new in (
        ("gradient_checkpointing", "activation_checkpointing"),
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ):
        if getattr(args, old) is not None:
            setattr(args, new, getattr(args, old))
        setattr(args, old, getattr(args, new))


def set_checkpointing_kwargs(args: Any, kwargs: dict[str, Any]) -> None:
    """Changes how checkpointing is done, under both names."""
    args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs = kwargs


def enable_checkpointing(model: Any, kwargs: dict[str, Any] | None = None) -> None:
    """Has a model recompute its activations, under either name of the method."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)(kwargs)


def ignore_renamed() -> None:
    """Silences what transformers says of names that peft still uses."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
