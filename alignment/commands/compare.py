"""Train every method on the same small world and show what each does.

All methods of a seed start from the same model, learn from the same samples of it, read the same
number of responses in as many steps, and answer the same held-out prompts. A run that is
interrupted goes on, also for other methods and seeds. The page also says what the papers claim,
and what came of it: `--methods main claims` runs all that this needs.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import UserError, changed, check_counts, parse, run, say
from alignment.comparison.methods import Method, chosen
from alignment.comparison.page import table, write
from alignment.comparison.results import commit, gather
from alignment.comparison.seeds import Size, of_method, shared
from alignment.llm.lock import locked
from alignment.llm.protocol import going_on_by_itself
from alignment.stages import RunFolder, option_words

logger = logging.getLogger("alignment")

PRELOADED = [
    *("alignment.train", "alignment.commands.generate", "eval.winrate", "eval.zero_or_down"),
    *("alignment.commands.compare", "transformers.models.llama.modeling_llama"),
]


@dataclass(kw_only=True)
class Options:
    """Options of `alignment compare`."""

    output: Path = field(default=Path("runs/compare"), metadata={"help": "folder of the run"})
    methods: tuple[str, ...] = field(
        default=("main",),
        metadata={"help": "names of methods, or of parts: main, claims, wider, free"},
    )
    seeds: tuple[int, ...] = field(
        default=(0, 1, 2), metadata={"help": "each another draw of everything"}
    )
    training_free: bool = field(
        default=False, metadata={"help": "also decode the start in ways that need no training"}
    )
    jobs: int | None = field(
        default=None, metadata={"help": "processes at a time; unset, one per core, 8 at most"}
    )
    page: Path | None = field(
        default=None, metadata={"help": "page of the results, with its figure and JSON beside it"}
    )
    train_prompts: int = field(default=2400, metadata={"help": "to make data from"})
    held_out_prompts: int = field(default=400, metadata={"help": "to measure on"})
    sft_steps: int = field(default=1000, metadata={"help": "steps that make the start"})
    steps: int = field(default=160, metadata={"help": "steps of every method"})

    def __post_init__(self) -> None:
        check_counts(self, *Size._fields, "jobs")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"`seeds` is {list(self.seeds)}; it must name seeds from 0, each once")

    @property
    def size(self) -> Size:
        """How large the comparison is."""
        return Size(*(getattr(self, name) for name in Size._fields))


class Task(NamedTuple):
    """What one process does: a seed's shared stages, or one method of it.

    Attributes:
        output: Folder of the run.
        size: Of the comparison.
        seed: Which.
        method: Which; None for what the methods share.
    """

    output: Path
    size: Size
    seed: int
    method: Method | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return f"seed {self.seed}: {self.method.name if self.method else 'start and data'}"

    @property
    def folder(self) -> Path:
        """Where it leaves what it makes."""
        seed = self.output / f"seed-{self.seed}"
        return seed / "methods" / self.method.name if self.method else seed

    def run(self) -> None:
        """Does what is not done.

        Raises:
            UserError: The folder holds a run with other settings, or a stage's own.
        """
        if self.method is None:
            stages = shared(self.folder, self.size, self.seed)
        else:
            seed_folder = self.output / f"seed-{self.seed}"
            stages = of_method(self.method, seed_folder, self.size, self.seed)
        RunFolder(self.folder, stages).run()


def main(argv: list[str]) -> None:
    """`alignment compare`."""
    options = parse(Options, argv, "alignment compare", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    compare(options)


def compare(options: Options) -> None:
    """Runs what is not done, and writes results, table, figure and page.

    Raises:
        UserError: There is no such method, the folder holds another run, or a stage's own.
        Stopped: The run was interrupted.
    """
    methods = chosen([*options.methods, *(["free"] if options.training_free else [])])
    options.output.mkdir(parents=True, exist_ok=True)
    with locked(options.output / "run"):
        with going_on_by_itself():
            run_all(options, methods)
        results = gather(options.output, options.seeds)
        page = options.page or options.output / "evidence.md"
        write(results, _facts(options), page)
    for line in table(results):
        say(line)
    say(f"written to {page}, {page.with_suffix('.png').name} and {page.with_suffix('.json').name}")


def _facts(options: Options) -> dict[str, Any]:
    """How the results were made; the command names what is not as by default, and methods."""
    others = changed(options, ("methods", "output", "page", "jobs"))
    named = {name.replace("_", "-"): value for name, value in others.items()}
    words = option_words({"methods": options.methods, **named})
    return {
        "command": shlex.join(map(str, ("alignment", "compare", *words))),
        "commit": commit(),
        "size": options.size._asdict(),
    }


def run_all(options: Options, methods: Sequence[Method]) -> None:
    """Runs every method of every seed in processes of their own, several at a time.

    Raises:
        UserError: What a task could not do; tasks that run are finished first.
    """
    pending = [
        [Task(options.output, options.size, seed, method) for method in (None, *methods)]
        for seed in options.seeds
    ]
    total, done = sum(map(len, pending)), 0
    jobs = options.jobs or min(8, _cores())
    with _processes(jobs) as pool:
        running: dict[Future[str | None], Task] = {}

        def submit(tasks: Sequence[Task]) -> None:
            running.update({pool.submit(perform, task): task for task in tasks})

        submit([tasks[0] for tasks in pending])
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    error = future.result()
                except BrokenProcessPool:
                    raise UserError(
                        "a task's process was killed, most likely for lack of memory; run the same "
                        "command to go on, with fewer `--jobs`"
                    ) from None
                if error:
                    pool.shutdown(cancel_futures=True)
                    raise UserError(f"{task.name}: {error}; its log is {task.folder}.log")
                done += 1
                logger.info("%s: done, %d of %d", task.name, done, total)
                if task.method is None:
                    submit(next(tasks[1:] for tasks in pending if tasks[0] == task))


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that do a task each, so that its memory can be told.

    All are forked from one that has imported what they need and started no thread. With an
    interrupt they end without a word of their own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, heard)
    # What runs in the background may have been started deaf to interrupts, and stays so.
    deaf = heard == signal.SIG_IGN
    hears = (signal.SIGINT, signal.SIG_IGN if deaf else signal.SIG_DFL)
    with ProcessPoolExecutor(jobs, context, signal.signal, hears, max_tasks_per_child=1) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def perform(task: Task) -> str | None:
    """Does a task in a process of its own, whose words go to a file.

    Returns:
        What went wrong, in a line; None where nothing did.
    """
    import datasets
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # With a model this small a second thread gains nothing, and the order of sums is settled.
    torch.set_num_threads(1)
    with _log(Path(f"{task.folder}.log")):
        try:
            task.run()
        except UserError as error:
            return str(error)
    return None


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Sends what is printed and logged in this process to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=file, force=True)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield


if __name__ == "__main__":
    run(main)
