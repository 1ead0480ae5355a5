"""Reads weights back after every save: a model folder holds what the model holds, or is an error.

Sharded engines have been known to write adapters of size 0 and tensors of zeros without a word.
What lies in memory is measured where it lies, shard by shard, so that a fault in gathering shows.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.trainer import TRAINING_ARGS_NAME

from alignment.cli import UserError
from alignment.core.scoring import REFERENCE_ADAPTER
from alignment.trainers.card import CARD, is_own, write_card
from alignment.trainers.checkpoints import WRITTEN, replacing

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

SAME = 1e-6
"""Relative difference of two sums over the same numbers in another order."""

CAST = 1e-2
"""The same, where the file holds another precision than the model."""

_REMEDY = "nothing was replaced: resume from the last checkpoint, and report this with the versions"


def save_checked(
    trainer: GroupTrainer, save: Callable[[str, Any], None], folder: Path, state_dict: Any
) -> None:
    """Saves the policy aside, reads it back, and moves it to its place if it is as in memory.

    Its card goes with it, unless the folder has a README of its own. No pickle and no frozen copy
    of an adapter is part of it.

    Args:
        trainer: Whose policy it is; all of its processes take part.
        save: Saves to a folder, given the weights that an engine has gathered.
        folder: The place.
        state_dict: Those weights, or None.

    Raises:
        UserError: It is not as in memory, or could not be written; nothing is replaced.
    """
    args = trainer.args
    expected = measure(trainer.unwrap(trainer.model), trainer.accelerator)
    if not args.should_save:
        save(str(folder), state_dict)
        return
    replaces_card = is_own(folder / CARD)
    learned = any(entry.get("learning_rate", 0.0) > 0 for entry in trainer.state.log_history)
    with replacing(folder, folder / WRITTEN, Path(args.output_dir)):
        staged = folder / WRITTEN
        save(str(staged), state_dict)
        (staged / TRAINING_ARGS_NAME).unlink()
        shutil.rmtree(staged / REFERENCE_ADAPTER, ignore_errors=True)
        if replaces_card:
            (staged / CARD).unlink(missing_ok=True)  # the form that peft leaves to be filled in
        write_card(trainer, staged)
        check_saved(staged, expected, learned=learned)


class Measured(NamedTuple):
    """What identifies a tensor without holding it.

    Attributes:
        shape: Of the whole tensor, also where memory holds a shard.
        total: Sum of the absolute values; 0 for zeros, not finite where a value is not.
        dtype: Precision.
    """

    shape: tuple[int, ...]
    total: float
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Measured:
        """Measures a tensor."""
        return cls(tuple(tensor.shape), float(_total(tensor)), tensor.dtype)


def measure(model: nn.Module, accelerator: Accelerator) -> dict[str, Measured]:
    """Measures the weights that a save of `model` has to hold.

    Where weights are sharded every process must call this.

    Args:
        model: The policy without what the engine wrapped around it.
        accelerator: Adds shards up.

    Returns:
        By the name that the weight has in the file: the trained weights of an adapter, or all of a
        model. Weights that the engine keeps under names of its own (FSDP before version 2) are left
        out.
    """
    parameters = dict(_saved_parameters(model))
    sharded = {name: p for name, p in parameters.items() if hasattr(p, "ds_tensor")}
    totals = {name: _total(p) for name, p in parameters.items() if name not in sharded}
    if sharded:
        parts = torch.stack([_total(p.ds_tensor) for p in sharded.values()])
        summed = accelerator.reduce(parts.to(accelerator.device), reduction="sum")
        totals |= dict(zip(sharded, summed, strict=True))
    return {
        name: Measured(tuple(getattr(p, "ds_shape", p.shape)), float(totals[name]), p.dtype)
        for name, p in parameters.items()
    }


def check_saved(folder: Path, expected: dict[str, Measured], *, learned: bool) -> None:
    """Reads the weights in a folder back and compares them with what was measured in memory.

    Args:
        folder: What `save_pretrained` has written.
        expected: What `measure` found.
        learned: A step has been taken, so an adapter differs from the one it began as.

    Raises:
        UserError: There is no weight; one is missing, empty, of another shape, no number, or zero
            where memory has weights; or an adapter is still the one that changes nothing.
    """
    found = dict(_stored(folder))
    if not found:
        raise UserError(f"nothing was saved: {folder} holds no weight; {_REMEDY}")
    for name, tensor in found.items():
        if 0 in tensor.shape or not math.isfinite(tensor.total):
            what = f"has shape {tensor.shape}" if 0 in tensor.shape else "holds NaN or infinity"
            raise UserError(f"the saved weight `{name}` {what}; {_REMEDY}")
    for name in expected.keys() & found.keys():
        fault = _difference(found[name], expected[name])
        if fault:
            raise UserError(f"the saved weight `{name}` {fault}; {_REMEDY}")
    _check_renamed(found, expected)
    _check_adapter(found, learned)


def _difference(found: Measured, expected: Measured) -> str | None:
    if found.shape != expected.shape:
        return f"has shape {found.shape}, in memory {expected.shape}"
    if found.total == 0.0 and expected.total > 0.0:
        return "is all zeros, in memory it is not"
    slack = SAME if found.dtype == expected.dtype else CAST
    if not math.isclose(found.total, expected.total, rel_tol=slack):
        return f"sums to {found.total:.9g}, in memory to {expected.total:.9g}"
    return None


def _check_renamed(found: dict[str, Measured], expected: dict[str, Measured]) -> None:
    """Weights that `save_pretrained` stores under other names are compared by their total."""
    absent = sorted(expected.keys() - found.keys())
    if not absent:
        return
    others = math.fsum(t.total for name, t in found.items() if name not in expected)
    total = math.fsum(expected[name].total for name in absent)
    if not math.isclose(others, total, rel_tol=CAST):
        raise UserError(
            f"{len(absent)} weights are missing from what was saved, the first is `{absent[0]}`; "
            f"{_REMEDY}"
        )


def _check_adapter(found: dict[str, Measured], learned: bool) -> None:
    """The first factor of a LoRA is never zero, the second one only before the first step."""
    dead = [name for name, t in found.items() if "lora_A" in name and t.total == 0.0]
    second = [t.total for name, t in found.items() if "lora_B" in name]
    if dead:
        raise UserError(
            f"the adapter weight `{dead[0]}` is all zeros, so that nothing can be learnt through "
            "it: begin with a fresh adapter"
        )
    if learned and second and not any(second):
        raise UserError(
            "the adapter is still the one that changes nothing (every `lora_B` is zero): no "
            "gradient has reached it; see to it that its layers are used and trained"
        )


def _saved_parameters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parameters that a save holds, by their names in the file."""
    named = {name: p for name, p in model.named_parameters() if "_flat_param" not in name}
    if not is_peft_model(model):
        yield from named.items()
        return
    from peft import get_peft_model_state_dict

    trained: dict[str, Any] = {name: p for name, p in named.items() if p.requires_grad}
    yield from get_peft_model_state_dict(
        model, state_dict=trained, save_embedding_layers=False
    ).items()


def _stored(folder: Path) -> Iterator[tuple[str, Measured]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, Measured.of(file.get_tensor(name))


def _total(tensor: Tensor) -> Tensor:
    """() float64, the sum of absolute values, over all shards of a distributed tensor."""
    values = tensor.detach()
    total = values.abs().sum(dtype=torch.float64)
    return total.full_tensor() if isinstance(total, DTensor) else total
