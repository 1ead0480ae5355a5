"""Stages of a run in a folder: done once, kept, and never mixed with those of other settings.

A stage is a function, most often one of the other commands, shown as it is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from alignment.cli import UserError

logger = logging.getLogger(__name__)

Words: TypeAlias = tuple[object, ...]
"""Options of a command as they are typed; each becomes text."""

RECORD = "stages.json"
FAMILIES = {"build": "data_builders", "data": "alignment.data_tools", "eval": "eval"}
"""First word of a command of two words -> where the modules are that its second word names."""


@dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
        name: A word, unique within the run.
        settings: All that its result depends on beside earlier stages; JSON.
        work: Does it, or goes on with what an interrupted attempt left.
    """

    name: str
    settings: Mapping[str, Any]
    work: Callable[[], None]


class RunFolder:
    """A folder that knows which stages it holds, and under which settings they were made.

    Args:
        path: The folder, created where missing.
        stages: All stages of the run, in order.
        overwrite: Starts anew, which deletes what the run left there.

    Attributes:
        seconds: Wall time of each finished stage; of the attempt that finished it, where it was
            interrupted.

    Raises:
        UserError: The folder holds something else, or a run with other settings.
    """

    def __init__(self, path: Path, stages: Sequence[Stage], *, overwrite: bool = False) -> None:
        self.path = path
        self.stages = stages
        record = path / RECORD
        if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not record.is_file())):
            raise UserError(f"{path} holds something else than a run; name another `--output`")
        if overwrite and path.exists():
            shutil.rmtree(path)
        self._settings = json.loads(json.dumps({s.name: dict(s.settings) for s in stages}))
        self.seconds: dict[str, float] = {}
        if record.is_file():
            self._go_on(json.loads(record.read_text(encoding="utf-8")))
        path.mkdir(parents=True, exist_ok=True)
        self._save()

    def run(self) -> None:
        """Does every stage that is not done."""
        for stage in self.stages:
            if stage.name in self.seconds:
                logger.info("%s: done before, %.0f s", stage.name, self.seconds[stage.name])
                continue
            started = time.monotonic()
            stage.work()
            self.seconds[stage.name] = round(time.monotonic() - started, 2)
            self._save()
            logger.info("%s: done, %.0f s", stage.name, self.seconds[stage.name])

    def _go_on(self, found: Mapping[str, Any]) -> None:
        before = found["settings"]
        for stage in {**before, **self._settings}:
            old, new = before.get(stage, {}), self._settings.get(stage, {})
            changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            if changed:
                name = changed[0]
                raise UserError(
                    f"{self.path} holds a run with other settings ({stage}: `{name}` was "
                    f"{old.get(name)}, now {new.get(name)}); name another `--output`, or pass "
                    "`--overwrite` to start anew"
                )
        self.seconds = dict(found["seconds"])

    def _save(self) -> None:
        text = json.dumps({"settings": self._settings, "seconds": self.seconds}, indent=2)
        write_whole(self.path / RECORD, text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def command(name: str, verb: str, words: Words, going_on: Words = ("--resume",)) -> Stage:
    """A stage that is one command, whose words are its settings.

    Args:
        name: Of the stage.
        verb: Such as `generate` or `build clair`.
        words: The command's options.
        going_on: Options that change no result.
    """
    settled, passing = list(map(str, words)), list(map(str, going_on))

    def work() -> None:
        logger.info("\n$ alignment %s %s", verb, shlex.join(settled))
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(command_module(verb)).main(settled + passing)

    return Stage(name, {"command": shlex.join([*verb.split(), *settled])}, work)


def training(name: str, words: Words, output: Path) -> Stage:
    """A stage that trains; it goes on from its last checkpoint and leaves none behind.

    Args:
        name: Of the stage.
        words: Options of `alignment train`, without the folder.
        output: The folder of adapter or model.
    """
    stage = command(
        name,
        "train",
        (*words, "--save_total_limit", 1, "--report_to", "none", "--output_dir", output),
        ("--resume_from_checkpoint", "auto", "--disable_tqdm", not sys.stderr.isatty()),
    )

    def work() -> None:
        stage.work()
        for checkpoint in output.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    return replace(stage, work=work)


def option_words(options: Mapping[str, Any]) -> Words:
    """Options as words of a command line; those that are None are left out."""
    words: list[object] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}", str(value).lower()]
        elif isinstance(value, Mapping):
            words += [f"--{name}", json.dumps(value, default=str)]
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *value]
        elif value is not None:
            words += [f"--{name}", value]
    return tuple(words)


def command_module(verb: str) -> str:
    """The module that is a command, such as `train`, `generate` or `build clair`."""
    family, _, name = verb.partition(" ")
    if family == "train":
        return "alignment.train"
    return f"{FAMILIES[family]}.{name}" if name else f"alignment.commands.{family}"
