"""Shards of a job on a Ray cluster, by Ray Data."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from alignment.cli import UserError, module_of, words_of
from alignment.llm.ledger import Ledger
from alignment.llm.options import ShardOptions
from alignment.llm.protocol import Stopped
from alignment.llm.shards import Shard

_LIVES = 10
"""How often a shard is begun whose worker dies: something in it may be what kills them."""


@contextmanager
def cluster() -> Iterator[int]:
    """A connection to the cluster that `RAY_ADDRESS` names or that runs here, else to a new one.

    Yields:
        Its CPUs.

    Raises:
        UserError: Ray is missing, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _refuse_silence(os.environ.get("RAY_ADDRESS", ""))
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(
            "`--engine ray` needs the extra `ray`: pip install 'contrastive-alignment[ray]'"
        ) from None
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        told = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot join the Ray cluster: {told}; see `RAY_ADDRESS`") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Refuses an address at which nobody listens, to which Ray would try to connect for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at {address} ({error.strerror or error}): start one there, or name "
            "another in `RAY_ADDRESS`"
        ) from None


def scatter(options: ShardOptions, ledger: Ledger, output: str | Path) -> None:
    """Has all shards of a job run on a Ray cluster, the caps of the job divided among them."""

    def share(cap: float | None, parts: int) -> float | None:
        return None if cap is None else cap / parts

    with cluster() as cpus:
        workers = min(options.workers or cpus, options.shards)
        left = None if options.max_cost is None else options.max_cost - ledger.spent()
        if left is not None and left <= 0:
            return  # the job itself tells of it
        ledger.checkpoint()
        one = replace(
            options,
            engine="local",
            max_cost=share(left, options.shards),
            requests_per_minute=share(options.requests_per_minute, workers),
            tokens_per_minute=share(options.tokens_per_minute, workers),
        )
        words = words_of(one, ("resume", "overwrite", "shards", "workers"))
        run_shards(module_of(options), words, output, options.shards, workers)


def run_shards(
    module: str, words: Sequence[str], output: str | Path, shards: int, workers: int
) -> None:
    """Runs all shards of a job; one whose worker dies is run again, and goes on from its ledger.

    Args:
        module: The module of the command.
        words: Its command line, but for `--shard`.
        output: Of the job.
        shards: How many there are.
        workers: Most at work at the same time.

    Raises:
        UserError: What a shard has ended with, or its worker died `_LIVES` times.
    """
    import ray.data

    command = {
        "module": module,
        "words": list(words),
        "output": str(output),
        "of": shards,
        "folder": str(Path.cwd()),
    }
    for number in range(1, shards + 1):
        _begun(Shard(number, shards), output).unlink(missing_ok=True)
    numbers = ray.data.from_items([*range(1, shards + 1)], override_num_blocks=shards)
    # Ray Data begins a task anew whenever its worker or machine dies.
    pool = ray.data.TaskPoolStrategy(size=workers)
    ended = numbers.map(run_shard, fn_kwargs=command, num_cpus=1, compute=pool)
    with tqdm(total=shards, unit="shard", disable=None) as bar:
        for shard in ended.iter_rows():
            if shard["error"]:
                raise UserError(f"shard {shard['number']}/{shards}: {shard['error']}")
            bar.update()


def run_shard(  # noqa: PLR0913 - Ray Data passes arguments one by one
    item: dict[str, int], *, module: str, words: list[str], output: str, of: int, folder: str
) -> dict[str, Any]:
    """Runs one shard in a worker, as its command line would."""
    shard = Shard(item["item"], of)
    os.chdir(folder)
    if "" not in sys.path:
        sys.path.insert(0, "")  # as the command itself does: programs may lie in this folder
    error, begun = "", _begun(shard, output)
    begun.parent.mkdir(parents=True, exist_ok=True)
    with begun.open("a") as file:
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
    if len(begun.read_text().splitlines()) > _LIVES:
        error = (
            f"its worker died {_LIVES} times; `--shard {shard}` without `--engine` shows of what"
        )
        return {"number": shard.number, "error": error}
    try:
        importlib.import_module(module).main([*words, "--shard", str(shard)])
    except (SystemExit, Stopped):
        pass  # what is missing the job itself asks for, or tells of
    except UserError as told:
        error = str(told)
    return {"number": shard.number, "error": error}


def _begun(shard: Shard, output: str | Path) -> Path:
    """Where each worker that begins with a shard writes a line."""
    return shard.file(output).with_name("begun")
