"""Whether processes can talk to one another: a short all-reduce, over the GPUs or over gloo."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from alignment.diagnosis.finding import Finding

_SECONDS = 60


def check_all_reduce(processes: int | None = None) -> Iterator[Finding]:
    """Sums a tensor over processes.

    Args:
        processes: How many; by default one per GPU, two without GPUs.
    """
    gpus = torch.cuda.device_count()
    count = processes or gpus or 2
    backend = "nccl" if gpus >= count else "gloo"
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            multiprocessing.spawn(_reduce, (count, backend, str(Path(folder) / "meet")), count)
        except (RuntimeError, multiprocessing.ProcessExitedException) as error:
            last = str(error).strip().splitlines()[-1]
            yield Finding(
                "broken",
                "all-reduce",
                f"{count} processes over {backend} do not reach one another: {last}",
                "look at firewall and network interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); "
                "NCCL_DEBUG=INFO tells more",
            )
            return
    seconds = time.perf_counter() - begin
    yield Finding("ok", "all-reduce", f"{count} processes over {backend}, {seconds:.1f} s in all")


def _reduce(rank: int, count: int, backend: str, meet: str) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        backend,
        init_method=f"file://{meet}",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=_SECONDS),
    )
    try:
        value = torch.full((1 << 16,), float(rank + 1), device=device)
        dist.all_reduce(value)
        expected = count * (count + 1) / 2
        if not bool((value == expected).all()):
            raise RuntimeError(f"the sum over processes is {float(value[0])}, not {expected}")
    finally:
        dist.destroy_process_group()
