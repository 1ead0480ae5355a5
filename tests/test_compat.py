"""Names that changed between the admitted versions mean the same in all of them."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.compat import enable_checkpointing, name_checkpointing, set_checkpointing_kwargs
from alignment.trainers.config import GroupConfig
from tests.trainers.runs import small_model


@dataclass
class TrainingArguments:
    """Those of transformers before the rename."""

    gradient_checkpointing: bool | None = None
    gradient_checkpointing_kwargs: Any = None


@dataclass
class Own(TrainingArguments):
    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: Any = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"activation_checkpointing": False}, False),
        ({"gradient_checkpointing": False}, False),
        ({"gradient_checkpointing": True}, True),
        ({"gradient_checkpointing": True, "activation_checkpointing": False}, False),
    ],
)
def test_an_older_transformers_reads_the_name_it_knows(given: dict[str, bool], expected: bool):
    args = Own(**given, activation_checkpointing_kwargs={"use_reentrant": False})
    name_checkpointing(args)
    assert args.gradient_checkpointing is args.activation_checkpointing is expected
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_the_installed_transformers_gets_both_names(tmp_path: Path):
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        switched_off: Any = {name: False}
        args = GroupConfig(str(tmp_path), use_cpu=True, **switched_off)
        assert not args.gradient_checkpointing
        assert not args.activation_checkpointing
    args = GroupConfig(str(tmp_path), use_cpu=True)
    assert args.gradient_checkpointing
    assert args.activation_checkpointing
    set_checkpointing_kwargs(args, {"use_reentrant": True})
    assert args.gradient_checkpointing_kwargs == args.activation_checkpointing_kwargs


def test_checkpointing_is_switched_on_by_either_method():
    model = small_model()
    enable_checkpointing(model)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    given: list[Any] = []
    enable_checkpointing(SimpleNamespace(gradient_checkpointing_enable=given.append), {"a": 1})
    assert given == [{"a": 1}]
