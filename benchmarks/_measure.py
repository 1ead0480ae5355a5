"""What benchmarks share: quartiles, peak memory, processes of their own, and tables."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from alignment.cli import quieten


def be_quiet() -> None:
    """Keeps libraries from reporting, downloading and chatting; call it before importing them."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    quieten()
    # TRL and peft ask for settings by names that transformers has changed.
    warnings.filterwarnings("ignore", category=FutureWarning)


class Spread(NamedTuple):
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Reads them off some values."""
        low, middle, high = np.percentile(values, (25, 50, 75))
        return cls(float(middle), float(low), float(high))


def release() -> None:
    """Gives what is no longer in use back to the system: it is not to count as there already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Growth:
    """Peak memory since it was made, above the level then.

    On a CPU pages of mapped files that were read since do not count, such as those of libraries.

    Args:
        device: `cpu` or `cuda`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._level = float(torch.cuda.memory_allocated())
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self._level = _status("VmRSS") - file_backed()

    def megabytes(self) -> float:
        """What it is so far."""
        if self._cuda:
            return (torch.cuda.max_memory_allocated() - self._level) / 1e6
        return (_status("VmHWM") - file_backed() - self._level) / 1e6


def file_backed() -> float:
    """Bytes of mapped files in memory, which the system takes back at no cost."""
    return _status("RssFile")


def anonymous() -> float:
    """Bytes in memory that belong to this process alone, without mapped files."""
    return _status("RssAnon")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def in_fresh_process(module: str, setting: Any, *, tight: bool = False) -> Any:
    """What `python -m MODULE --one SETTING` prints in its last line, both as JSON.

    Args:
        module: Which.
        setting: Its setting.
        tight: Gives freed tensors back to the system at once, so that the peak of a process on a
            CPU is that of what it uses, without the allocator's holes; slower.

    Raises:
        RuntimeError: The process failed; the end of what it said is shown.
    """
    command = [sys.executable, "-m", module, "--one", json.dumps(setting)]
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path}
    if tight:
        env["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    if run.returncode:
        raise RuntimeError(f"{module} --one failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
