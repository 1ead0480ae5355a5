"""Whether the machine and the engine can do what a recipe asks, before anything is loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from accelerate.utils import str_to_bool

from alignment.cli import UserError

if TYPE_CHECKING:
    from alignment.trainers.config import GroupConfig


def check_engine(args: GroupConfig, attn_implementation: str | None = None) -> None:
    """Refuses what cannot run here.

    Args:
        args: Settings; the launcher's variables are read beside them.
        attn_implementation: What the recipe names.

    Raises:
        UserError: A GPU is needed and there is none, more processes than GPUs were started, or
            DeepSpeed is told another precision than the recipe.
    """
    gpus = torch.cuda.device_count()
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    if on_cpu and "flash" in (attn_implementation or ""):
        raise UserError(
            f"attn_implementation: {attn_implementation} needs a GPU, and the run has none: leave "
            "it out, or set `sdpa`"
        )
    if on_cpu and str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        raise UserError(
            "accelerate does not shard by FSDP on a CPU, it would run plain DDP: take "
            "recipes/accelerate/zero3.yaml, or a machine with GPUs"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not on_cpu and 0 < gpus < local:
        raise UserError(
            f"{local} processes were started and this machine shows {gpus} GPUs: lower "
            "`--num_processes` (or `--gpus`), or mend CUDA_VISIBLE_DEVICES"
        )
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args, on_cpu)


def _check_deepspeed(args: GroupConfig, on_cpu: bool) -> None:
    config = args.deepspeed_plugin.deepspeed_config
    for name in ("bf16", "fp16"):
        enabled = config.get(name, {}).get("enabled") is True
        if enabled and on_cpu and not (name == "bf16" and cpu_computes_bf16()):
            raise UserError(
                f"DeepSpeed is told to compute in {name}, which this CPU cannot: set "
                f'`"{name}": {{"enabled": "auto"}}` in its JSON and leave `{name}` out here'
            )
        if enabled and not getattr(args, name):
            raise UserError(
                f"DeepSpeed is told to compute in {name} and the recipe is not: set "
                f'`"{name}": {{"enabled": "auto"}}` in its JSON, or `{name}: true` in the recipe'
            )


def cpu_computes_bf16() -> bool:
    """Whether the CPU has instructions for bf16; without them it is emulated, very slowly."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
