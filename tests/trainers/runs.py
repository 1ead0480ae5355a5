"""Short training runs on a tiny model, for tests of the trainer."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from alignment.core.packing import PackedBatch
from alignment.core.scoring import add_scored_forward, policy_logps
from alignment.trainers.base import GroupTrainer
from alignment.trainers.config import GroupConfig
from tests.tiny import tiny_model, tiny_tokenizer

# A run collects garbage when it starts and ends; what is imported by now need not be walked.
gc.collect()
gc.freeze()

_ANIMALS = ("cat", "heron", "trout", "beetle", "old grey wolf", "ox", "little brown bat")
_KINDS = ("mammal", "bird", "fish with scales", "insect")


def pair_rows(count: int) -> list[dict[str, Any]]:
    """Distinct preference pairs of ragged lengths."""
    return [
        {
            "prompt": f"{index}: what is the {_ANIMALS[index % 7]}?",
            "chosen": f" a {_KINDS[index % 4]}" + " indeed" * (index % 3),
            "rejected": f" no {_KINDS[(index + 1) % 4]}" + " at all" * (index % 2),
        }
        for index in range(count)
    ]


def lora(**changes: Any) -> LoraConfig:
    """A small adapter on the attention."""
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    return LoraConfig(task_type="CAUSAL_LM", **{**settings, **changes})


def settings(folder: Path, **changes: Any) -> GroupConfig:
    """Four steps of four pairs on the CPU, every one logged, nothing saved."""
    chosen: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "activation_checkpointing": False,
    }
    return GroupConfig(**{**chosen, **changes})


def small_model(**options: Any) -> PreTrainedModel:
    """A Llama of one layer."""
    return tiny_model(num_hidden_layers=1, **options)


def build(
    folder: Path,
    rows: Any = None,
    *,
    model: str | PreTrainedModel | None = None,
    peft_config: LoraConfig | None = None,
    full: bool = False,
    **changes: Any,
) -> GroupTrainer:
    """A trainer of a fresh adapter, or of the whole model.

    Args:
        folder: Where the run writes.
        rows: Training rows; twelve pairs by default.
        model: A model; a one-layer Llama by default.
        peft_config: An adapter; a small one by default.
        full: Trains without a new adapter.
        **changes: Arguments of the trainer, and settings that differ.
    """
    names = ("eval_dataset", "ref_model", "teacher_model", "objective", "callbacks")
    given = {name: changes.pop(name) for name in names if name in changes}
    source = small_model() if model is None else model
    return GroupTrainer(
        source,
        settings(folder, **changes),
        pair_rows(12) if rows is None else rows,
        processing_class=tiny_tokenizer(),
        peft_config=None if full else (peft_config or lora()),
        **given,
    )


def run(folder: Path, rows: Any = None, **changes: Any) -> GroupTrainer:
    """A trainer that has trained."""
    trainer = build(folder, rows, **changes)
    trainer.train()
    return trainer


def logged(trainer: GroupTrainer, name: str = "loss") -> list[float]:
    """One metric, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def trained_weights(trainer: GroupTrainer) -> Tensor:
    """All trainable weights as one vector."""
    model = trainer.unwrap(trainer.model)
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def whole_batch(trainer: GroupTrainer, groups: Iterable[Any]) -> PackedBatch:
    """Some groups in one batch."""
    return trainer.pack(list(groups))


def scored(model: Any, batch: PackedBatch) -> Tensor:
    """(N,) log-probs of a batch under a model, with or without its adapter, in eval mode."""
    model.eval()
    add_scored_forward(model.get_base_model() if hasattr(model, "peft_config") else model)
    with torch.no_grad():
        return policy_logps(model, batch)
