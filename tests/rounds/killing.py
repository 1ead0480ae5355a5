"""Kills a loop by SIGKILL in every one of its stages, and runs it again each time.

    python -m tests.rounds.killing CONFIG OUTPUT

Runs it undisturbed first, into OUTPUT/whole, to know its stages, then into OUTPUT/killed. Every
start is a fork of this process, which has imported everything and computes nothing. A run is killed
in the midst of a stage: before a row, a chunk of answers or a set of calls is written, between the
passes of a step, or, where the stage does none of these so often, between its end and its record.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from alignment.cli import parse
from alignment.commands import generate
from alignment.commands.loop import loop
from alignment.llm.ledger import Ledger
from alignment.llm.model import LocalModel
from alignment.llm.rows import Output
from alignment.rounds import store
from alignment.rounds.options import Options
from alignment.rounds.store import Store
from tests.rounds.counted import ASKED, note

EVENTS = ((generate, "_write_whole"), (Ledger, "commit"), (Output, "_write"))
IMPORTED = ("alignment.train", "eval.winrate", "data_builders.judgments")
"""What would take each fork seconds to import."""
AFTER = {"train": 5}
"""Events of a stage that may pass before the kill; 3 if not named here."""


class Killer:
    """Ends this process in the midst of a stage."""

    def __init__(self, stage: str | None) -> None:
        self.stage = stage
        self.left = AFTER.get(str(stage).rpartition("/")[2], 3)
        self.inside = False

    def install(self) -> None:
        """Wraps what makes progress, and what begins and ends a stage."""
        trainer = importlib.import_module("transformers").Trainer
        for owner, name in (*EVENTS, (trainer, "training_step")):
            self._wrap(owner, name)
        store_type: Any = Store
        attempt = Store._attempt

        def watched(this: Store, folder: Path, record: dict[str, Any], work: Any) -> None:
            def working(where: Path) -> None:
                self.inside = name_of(folder) == self.stage
                work(where)
                if self.inside:
                    kill()

            attempt(this, folder, record, working)

        store_type._attempt = watched

    def _wrap(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= self.inside
            if self.inside and self.left < 0:
                kill()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def name_of(folder: Path) -> str:
    """`round-1/answers` of a stage's folder."""
    return f"{folder.parent.name}/{folder.name.rpartition('-')[0]}"


def note_draws() -> None:
    """Keeps a record of every prompt that a model in this process answers."""
    model_type: Any = LocalModel
    write = LocalModel.write

    def noted(this: LocalModel, batch: Any, *guide: Any) -> Any:
        for encoded in batch:
            note(f"draw {this.fingerprint} {encoded.request.canonical().hex()}")
        return write(this, batch, *guide)

    model_type.write = noted


def start(config: str, output: Path, stage: str | None) -> int:
    """Runs the loop in a fork of this process; returns how it ended, as `os.waitpid` tells."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    os.environ[ASKED] = f"{output}.asked"
    note_draws()
    Killer(stage).install()
    try:
        loop(parse(Options, ["--config", config, "--output", str(output)], "killing"))
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def kill_in_every_stage(config: str, folder: Path) -> list[str]:
    """Returns the names of the stages that the run was killed in."""
    for module in IMPORTED:
        importlib.import_module(module)
    if start(config, folder / "whole", None):
        raise SystemExit("the undisturbed run failed")
    records = (folder / "whole").glob(f"*/*/{store.RECORD}")
    stages = [name_of(record.parent) for record in sorted(records, key=os.path.getmtime)]
    for stage in stages:
        status = start(config, folder / "killed", stage)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"there was no kill in {stage}: status {status}")
    if start(config, folder / "killed", None):
        raise SystemExit("the last run failed")
    return stages


if __name__ == "__main__":
    sys.stdout.write(json.dumps(kill_in_every_stage(sys.argv[1], Path(sys.argv[2]))) + "\n")
