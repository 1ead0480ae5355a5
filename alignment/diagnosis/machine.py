"""The machine: GPUs and the torch that should see them, memory and disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from alignment.diagnosis.finding import Finding

_GIB = 2**30
_LITTLE_DISK = 20 * _GIB
"""Below this a checkpoint of a model of some billion parameters may not fit."""


def check_torch() -> Iterator[Finding]:
    """Whether torch and the driver fit, and what GPUs there are."""
    build = f"{torch.__version__}, " + (
        f"for CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    )
    if has_driver() and not torch.version.cuda:
        yield Finding(
            "broken",
            "torch",
            f"{build}, but this machine has an NVIDIA driver",
            f"install the GPU build: pip install torch=={torch.__version__.partition('+')[0]}",
        )
    elif has_driver() and not torch.cuda.is_available():
        yield Finding(
            "broken",
            "torch",
            f"{build}, and the driver does not serve it",
            "update the driver, or install a torch for its CUDA; see nvidia-smi",
        )
    elif torch.version.cuda and not torch.cuda.is_available():
        yield Finding(
            "warning", "torch", f"{build}, but no GPU is here", "train on a machine with one"
        )
    else:
        yield Finding("ok", "torch", build)
    yield from check_gpus()
    yield from check_extras()


def check_gpus() -> Iterator[Finding]:
    """Every GPU that torch sees."""
    kinds = set()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        kinds.add(properties.name)
        told = f"{properties.name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        if properties.major < 8:
            yield Finding(
                "warning",
                f"GPU {index}",
                f"{told}, computes no bf16",
                "set `fp16: true` in recipes",
            )
        elif free < 0.9 * total:
            yield Finding(
                "warning", f"GPU {index}", told, "another process holds the rest: see nvidia-smi"
            )
        else:
            yield Finding("ok", f"GPU {index}", told)
    if len(kinds) > 1:
        yield Finding(
            "warning",
            "GPUs",
            f"of {len(kinds)} kinds: every step waits for the slowest",
            "choose equal ones with CUDA_VISIBLE_DEVICES",
        )
    if not kinds:
        yield Finding(
            "warning",
            "GPU",
            "none: training runs on the CPU",
            "fine for trying; docs/distributed.md tells what needs how many GPUs",
        )


def check_extras() -> Iterator[Finding]:
    """Optional packages that need more than their own installation."""
    on_cpu = not torch.cuda.is_available()
    if on_cpu and importlib.util.find_spec("bitsandbytes"):
        yield Finding(
            "warning",
            "bitsandbytes",
            "there is no GPU: models in 4 bit run on the CPU, slowly",
            "leave `load_in_4bit` out where memory allows it",
        )
    compilers = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if importlib.util.find_spec("deepspeed") and not compilers:
        yield Finding(
            "warning",
            "deepspeed",
            "there is no C++ compiler, with which it builds its operators at the first run",
            "install g++",
        )


def check_room(folder: Path) -> Iterator[Finding]:
    """Memory, and the disks that checkpoints and downloads go to."""
    memory = psutil.virtual_memory()
    told = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    yield Finding("ok", "memory", f"{told}, {os.cpu_count()} cores")
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    for name, place in (("disk for runs", folder), ("disk for the hub's cache", cache)):
        place = place.absolute()
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free
        told = f"{free / _GIB:.1f} GiB free at {there}"
        if not os.access(there, os.W_OK):
            yield Finding("broken", name, f"{there} cannot be written", "choose another folder")
        elif free < _LITTLE_DISK:
            yield Finding("warning", name, told, "make room, or choose another disk")
        else:
            yield Finding("ok", name, told)


def has_driver() -> bool:
    """Whether the machine has an NVIDIA driver, whatever torch sees."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
