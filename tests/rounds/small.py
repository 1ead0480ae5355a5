"""The small world at a size for tests of loops: a model, and the file of a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from alignment.quickstart.inputs import write_world
from alignment.stages import training


def teach(folder: Path, steps: int, train_prompts: int, held_out_prompts: int) -> Path:
    """The world's prompts, and a model that has seen some demonstrations."""
    write_world(
        folder,
        demonstrations=12 * steps,
        train_prompts=train_prompts,
        held_out_prompts=held_out_prompts,
        seed=0,
    )
    words = (
        *("--model_name_or_path", folder / "blank", "--objective", "sft"),
        *("--dataset_name", folder / "demonstrations.jsonl", "--max_steps", steps),
        *("--global_batch_size", 32, "--per_device_train_batch_size", 32),
        *("--learning_rate", 2e-3, "--warmup_steps", 30, "--lr_scheduler_type", "cosine"),
        *("--adam_beta2", 0.98, "--use_cpu", "true", "--save_strategy", "no"),
        *("--activation_checkpointing", "false"),
    )
    training("sft", words, folder / "start").work()
    return folder


def config(world: Path, path: Path, **options: Any) -> Path:
    """A loop's file for a small world.

    Args:
        world: Folder of `teach`.
        path: Where the file goes.
        **options: Its keys beside those of every test.
    """
    given: dict[str, Any] = {
        "model": str(world / "start"),
        "prompts": str(world / "prompts/train.jsonl"),
        "held_out": str(world / "prompts/held_out.jsonl"),
        "output": str(path.with_suffix("")),
        "prompts_per_round": 48,
        "rounds": 2,
        "patience": None,
        "judge_model": "program:tests.rounds.counted.judge",
        "threads": 1,
        "generate": {"max_tokens": 32, "device": "cpu", "batch_size": 8, "chunk_size": 8},
        "evaluate": {"resamples": 200, "concurrency": 4},
        **options,
    }
    steps = {"max_steps": 6, "save_steps": 2, "global_batch_size": 8, "learning_rate": 1e-3}
    given["train"] = {
        **steps,
        "use_cpu": True,
        "logging_steps": 1,
        "activation_checkpointing": False,
        **given.get("train", {}),
    }
    path.write_text(yaml.safe_dump(given))
    return path
