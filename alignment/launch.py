"""Starts a training run in several processes: what `alignment train --launcher NAME` does.

The processes are accelerate's, by a file of `recipes/accelerate`. Of processes that fail, the first
is told, in the one line it would have printed alone; its exit code becomes that of the command.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from alignment.cli import UserError, load_recipe, load_yaml, parse, print_error, split, unknown

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("recipes/accelerate")

_LAUNCHED = "ALIGNMENT_LAUNCHED"
"""Set to the command line where this module tells the errors of processes in their place."""

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where a process of torch's launcher leaves its last word."""


_PEER_LOST = ("closed by peer", "reset by peer", "remote process exited", "Broken pipe")
"""What gloo and NCCL say of a process that is gone."""

_SECONDS_TO_BE_ENDED = 20


@dataclass(kw_only=True)
class Options:
    """Options of `alignment train` that start several processes."""

    launcher: str = field(
        metadata={"help": "a file of recipes/accelerate by its name, or the path of another"}
    )
    gpus: int | None = field(
        default=None, metadata={"help": "GPUs of each machine; unset, all that it has"}
    )
    processes: int | None = field(
        default=None, metadata={"help": "processes of each machine, without GPUs"}
    )
    nodes: int = field(default=1, metadata={"help": "machines"})
    node_rank: int = field(default=0, metadata={"help": "which machine this is, from 0"})
    main_address: str | None = field(
        default=None, metadata={"help": "address of machine 0, where there are several"}
    )
    main_port: int | None = field(
        default=None, metadata={"help": "its port; unset, a free one, or 29500 on several machines"}
    )

    def __post_init__(self) -> None:
        for name in ("gpus", "processes", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name}` is {value}; it must be at least 1")
        if self.gpus is not None and self.processes is not None:
            raise ValueError("`--gpus` and `--processes` exclude each other: a GPU has a process")
        if not 0 <= self.node_rank < self.nodes:
            raise ValueError(
                f"`--node_rank` is {self.node_rank}; with {self.nodes} machines it runs from 0 to "
                f"{self.nodes - 1}"
            )
        if self.nodes > 1 and self.main_address is None:
            raise ValueError(f"{self.nodes} machines need `--main_address`, that of machine 0")


def is_wanted(argv: Sequence[str]) -> bool:
    """Whether a command line of `alignment train` names a launcher."""
    return any(word.partition("=")[0] == "--launcher" for word in argv)


def main(argv: list[str]) -> None:
    """Starts the processes and waits for them.

    Raises:
        UserError: They cannot be started, or one of them failed; `status` is its exit code.
    """
    own, words = split(Options, argv)
    options = parse(Options, own, "alignment train")
    path = configuration(options.launcher)
    gpus = gpus_to_use(words)
    kind = str(load_yaml(path).get("distributed_type", "NO"))
    count = processes_of_machine(options, kind, path, gpus)
    os.environ[_LAUNCHED] = command_line(argv)
    # The report of torch's launcher on a failed process is replaced by ours.
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    if gpus == 0:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _start(accelerate_words(options, path, count, on_cpu=gpus == 0) + words)


def command_line(argv: Sequence[str]) -> str:
    """The command as it was typed, also in a process that it has started; without tokens."""
    words, secret = ["alignment", "train"], False
    for word in argv:
        name, equals, _ = word.partition("=")
        is_token = name.replace("-", "_") == "__hub_token"
        words.append("***" if secret else f"{name}=***" if is_token and equals else word)
        secret = is_token and not equals
    return os.environ.get(_LAUNCHED) or shlex.join(words)


def configuration(name: str) -> Path:
    """The file that a launcher's name stands for.

    Raises:
        UserError: There is none.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        if not Path(name).is_file():
            raise UserError(f"--launcher: no such file: {name}")
        return Path(name)
    folders = [folder for folder in (FOLDER, ROOT / FOLDER) if folder.is_dir()]
    files = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.yaml")}
    if not files:
        raise UserError(f"--launcher {name}: there is no folder {FOLDER} here; name a YAML file")
    if name not in files:
        raise unknown("launcher", name, files)
    return files[name]


def asks_for_cpu(words: Sequence[str]) -> bool:
    """Whether recipe and command line, read as training reads them, set `use_cpu`."""
    value: Any = None
    for index, word in enumerate(words):
        name, equals, given = word.partition("=")
        follows = words[index + 1] if index + 1 < len(words) else ""
        if name == "--config" and value is None:
            value = load_recipe(given if equals else follows).get("use_cpu")
        elif name in ("--use_cpu", "--use-cpu"):
            value = given if equals else "true" if follows.startswith("--") else follows or "true"
    return bool(yaml.safe_load(value) if isinstance(value, str) else value)


def gpus_to_use(words: Sequence[str]) -> int:
    """The GPUs that this machine shows, 0 where recipe or command line stay on the CPU."""
    return 0 if asks_for_cpu(words) else visible_gpus()


def visible_gpus() -> int:
    """GPUs that torch sees; loading it is what takes time here."""
    import torch

    return torch.cuda.device_count()


def processes_of_machine(options: Options, kind: str, path: Path, gpus: int) -> int:
    """How many processes each machine starts.

    Args:
        options: What is asked for.
        kind: The engine, as accelerate names it.
        path: The engine's file, for messages.
        gpus: Those that the machine shows, 0 where the recipe stays on the CPU.

    Raises:
        UserError: The three do not fit.
    """
    if (options.gpus or 0) > gpus:
        raise UserError(
            f"`--gpus {options.gpus}` is asked for, and there are {gpus} to use: mend it or "
            "CUDA_VISIBLE_DEVICES, or say `--use_cpu true --processes 2` to try without"
        )
    if kind == "FSDP" and gpus == 0:
        raise UserError(
            f"{path.name} shards by FSDP, which accelerate does not do on a CPU: take zero3, or a "
            "machine with GPUs"
        )
    wanted = options.gpus or options.processes
    if kind == "NO":
        if (wanted or 1) * options.nodes > 1:
            raise UserError(f"{path.name} starts one process, more are wanted: take ddp")
        return 1
    if not wanted and gpus == 0:
        raise UserError("there is no GPU to use: say how many `--processes` to try on the CPU")
    return wanted or gpus


def accelerate_words(options: Options, path: Path, count: int, *, on_cpu: bool) -> list[str]:
    """The words after `accelerate launch`, up to those of the recipe."""
    port = options.main_port or (0 if options.nodes == 1 else 29500)
    words = ["--config_file", str(path), "--num_processes", str(count * options.nodes)]
    words += ["--num_machines", str(options.nodes), "--main_process_port", str(port)]
    if options.nodes > 1:
        words += ["--machine_rank", str(options.node_rank)]
        words += ["--main_process_ip", str(options.main_address)]
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // count)
        words += ["--num_cpu_threads_per_process", str(threads)]
    return [*words, "-m", "alignment.train"]


def tell(message: str, status: int) -> None:
    """Tells an error of a process: alone on standard error, else to the launcher.

    An interruption reaches all processes; the first tells it.
    """
    file = os.environ.get(_ERROR_FILE) if os.environ.get(_LAUNCHED) else None
    if file is None:
        print_error(message, status)
    elif status != 130:
        said = {"message": message, "timestamp": int(time.time())}
        Path(file).write_text(json.dumps(said), encoding="utf-8")
    elif os.environ.get("RANK") == "0":
        print_error(message, status)


def supervised(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """A command's `main`, silent where it fails only because another process did.

    The launcher ends the others as soon as it has seen the first, whose error is the one to tell.
    """

    def wrapped(argv: list[str]) -> None:
        try:
            main(argv)
        except (RuntimeError, UserError) as error:
            if os.environ.get(_LAUNCHED) and any(word in str(error) for word in _PEER_LOST):
                time.sleep(_SECONDS_TO_BE_ENDED)
            raise

    return wrapped


def _start(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _end(failure.exitcode, failure.message if failure.error_file_data else "", rank)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the one process has told it
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except (ValueError, ImportError, ConnectionError) as error:
        raise UserError(f"cannot start the processes: {error}") from None


def _end(code: int, message: Any, rank: int) -> NoReturn:
    """Raises what became of the first process that failed."""
    if code < 0:
        told = f"it was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            told += ", which is what a machine out of memory does"
        code = 128 - code
    elif isinstance(message, str) and message:
        told = message
    else:
        told = f"it failed with exit code {code}; its own report stands above"
    error = UserError(f"{told} [rank {rank}]" if told is message else f"rank {rank}: {told}")
    error.status = code
    raise error
