"""What a run was: `run.json` beside the metrics, which model card and report are made from."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig
from transformers import TrainerCallback
from trl.trainer.utils import get_config_model_id

from alignment import __version__
from alignment.cli import changed
from alignment.objectives import describe
from alignment.trainers.checkpoints import Origin
from alignment.trainers.config import GroupConfig

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

RECORD = "run.json"

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")

_PLAIN = (str, int, float, bool, list, dict, type(None))
_UNTOLD = frozenset(
    {
        *("hub_token", "objective", "objective_kwargs", "output_dir", "logging_dir", "report_to"),
        *("disable_tqdm", "debug", "do_eval", "dataloader_pin_memory", "gradient_checkpointing"),
    }
)
"""Settings that are secret, stand elsewhere, or follow from others."""
_ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora")


@dataclass(frozen=True)
class Provenance:
    """What is known to whoever builds the trainer, and not to the trainer.

    Attributes:
        command: The command line; None in a program of the user's own.
        train_data: Files or Hub ids of the training data.
        eval_data: The same of the evaluation data.
    """

    command: str | None = None
    train_data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()


class RunFile(TrainerCallback):
    """Writes `run.json` before the first step, and again with what the steps took."""

    def __init__(self, trainer: GroupTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Describes the run; every process takes part."""
        self._write()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Adds what is known now."""
        self._write()

    def _write(self) -> None:
        found = record(self.trainer)
        if self.trainer.is_world_process_zero():
            folder = Path(self.trainer.args.output_dir)
            partial = folder / f"{RECORD}.partial"
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            partial.replace(folder / RECORD)


def record(trainer: GroupTrainer) -> dict[str, Any]:
    """All that is known of a run.

    Args:
        trainer: Its trainer, at any time after it was built.

    Returns:
        Plain JSON. `seconds` is the time of the session that took the last step; it and `tokens`
        are None before they are logged.
    """
    told = describe(trainer.objective)
    model = trainer.unwrap(trainer.model)
    logs = trainer.state.log_history
    return {
        "version": __version__,
        "command": trainer.provenance.command,
        "objective": {
            "name": trainer.args.objective,
            "method": repr(trainer.objective),
            **told._asdict(),
        },
        "model": {
            "start": get_config_model_id(model.config) or None,
            "architecture": model.config.model_type,
            # Each misses what the other sees: packed 4-bit weights, and weights in other processes.
            "parameters": max(model.num_parameters(), count(model.parameters())),
            "adapter": _adapter(model),
        },
        "data": {
            "train": list(trainer.provenance.train_data),
            "eval": list(trainer.provenance.eval_data),
            **asdict(trainer.data_report),
        },
        "run": asdict(Origin.of(trainer)),
        "layout": trainer.layout,
        "settings": settings(trainer.args),
        "steps": trainer.state.global_step,
        "steps_planned": trainer.state.max_steps,
        "tokens": _last(logs, "num_tokens"),
        "seconds": _last(logs, "train_runtime"),
        "machine": _machine(trainer),
        "versions": versions(),
    }


def settings(args: GroupConfig) -> dict[str, Any]:
    """The settings that differ from their defaults, without tokens of the Hub."""
    others = changed(args, _UNTOLD).items()
    found = {name: value for name, value in others if isinstance(value, _PLAIN)}
    return dict(json.loads(json.dumps(found, default=str)))


def versions() -> dict[str, str]:
    """Of this project, Python and the packages that numbers depend on, those that are there."""
    found = {"contrastive-alignment": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _adapter(model: Any) -> dict[str, Any] | None:
    if not is_peft_model(model):
        return None
    trained = count(weight for weight in model.parameters() if weight.requires_grad)
    return {**adapter_settings(model.peft_config[model.active_adapter]), "parameters": trained}


def adapter_settings(config: Any) -> dict[str, Any]:
    """What an adapter of any kind is, by its configuration; plain JSON.

    Returns:
        Its kind, rank, modules and whatever else of its own differs from the default. `import` is
        the module that makes an adapter of this project known to peft.
    """
    values = config.to_dict()
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    found = {name: values[name] for name in _ADAPTER if name in values}
    for field in dataclasses.fields(config):
        value = values.get(field.name)
        is_told = isinstance(value, str | int | float) and value != field.default
        if field.name not in common and is_told:
            found[field.name] = value
    modules = values.get("target_modules")
    if modules is not None and not isinstance(modules, str):  # whole names, one for each layer
        found["target_modules"] = sorted({str(name).rpartition(".")[2] for name in modules})
    if type(config).__module__.startswith("alignment.adapters"):
        found["import"] = "alignment.adapters"
    return dict(json.loads(json.dumps(found, default=str)))


def count(weights: Iterable[Any]) -> int:
    """Numbers in weights, also where they lie in shards in other processes."""
    return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in weights)


def _last(logs: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((entry[name] for entry in reversed(logs) if name in entry), None)


def _machine(trainer: GroupTrainer) -> Mapping[str, Any]:
    device = trainer.args.device
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else platform.processor() or "CPU",
        "processes": trainer.args.world_size,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if is_gpu else None,
        "precision": str(trainer.precision).removeprefix("torch."),
    }
