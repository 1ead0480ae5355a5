"""Every difference between the versions that pyproject.toml admits, and nothing else."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any


def name_checkpointing(args: Any) -> None:
    """Gives checkpointing the names that the installed transformers reads.

    Its arguments count by their old names too, `gradient_checkpointing*`, where the new ones are
    not set. Transformers 5.23 knows both; to 5.17 the old ones are all there is.

    Args:
        args: Training arguments with both names, not yet completed by transformers.
    """
    base = next(kind for kind in type(args).__mro__ if kind.__name__ == "TrainingArguments")
    known = {field.name for field in dataclasses.fields(base)}
    for old, new in (
        ("gradient_checkpointing", "activation_checkpointing"),
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ):
        if getattr(args, new) is None:
            setattr(args, new, getattr(args, old))
        if new not in known:
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
