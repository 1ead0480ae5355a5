"""Stages in folders that are named by all that they depend on.

A stage whose settings, inputs or programs change gets another folder and is made anew, and so is
what reads its output, whose name is part of its own; all else is found where it was. Nothing is
ever deleted, so going back to earlier settings finds their stages again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from alignment.cli import UserError
from alignment.llm.fingerprint import fingerprint
from alignment.llm.ledger import Ledger, Totals

logger = logging.getLogger("alignment")

RECORD = "stage.json"
LEDGER = "calls.ledger"
_DIGITS = 10
_OF_A_MODEL = ("config.json", "adapter_config.json")
"""Files that tell a model's folder from one of data."""


@dataclass(frozen=True)
class Made:
    """A finished stage.

    Attributes:
        folder: What it has made lies there.
        seconds: Wall time over all attempts that ended by themselves or by an error.
        calls: What it has added to the ledger.
    """

    folder: Path
    seconds: float
    calls: Totals


class Store:
    """The stages of a run, each in a folder of its own under the run's.

    Args:
        path: Folder of the run.

    Attributes:
        path: Folder of the run.
        ledger: The file that keeps the calls of all stages.
        made: Every stage that was asked for, in order, finished now or before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / LEDGER
        self.made: list[Made] = []

    def make(
        self, place: str, name: str, settings: Mapping[str, Any], work: Callable[[Path], None]
    ) -> Path:
        """Does a stage unless it is done, and returns its folder.

        Args:
            place: The part of the run that it belongs to, a folder.
            name: A word, unique there.
            settings: All that its result depends on. A `Path` stands for what is there: within the
                run by its name, which tells how it was made, elsewhere by its content, of a YAML
                file with that of the files that it names. A text `program:module.function` stands
                for that and for the module's source.
            work: Makes it in the folder, or goes on with what an interrupted attempt left there.

        Raises:
            UserError: A path does not exist, or the work's own.
        """
        told = self.identity(settings)
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:_DIGITS]
        folder = self.path / place / f"{name}-{key}"
        record = _read(folder)
        if not record.get("done"):
            folder.mkdir(parents=True, exist_ok=True)
            record = {"settings": told, "before": self._totals(), **record}
            self._attempt(folder, record, work)
        spent = Totals(*record["calls"])
        logger.info("%s/%s: done, %.0f s", place, folder.name, record["seconds"])
        self.made.append(Made(folder, record["seconds"], spent))
        return folder

    def identity(self, value: Any) -> Any:
        """Settings as JSON that is equal for equal results.

        Raises:
            UserError: A path does not exist.
        """
        if isinstance(value, Mapping):
            return {str(name): self.identity(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.identity(item) for item in value]
        if isinstance(value, Path):
            return self._path(value)
        if isinstance(value, str) and value.startswith("program:"):
            return [value, _source(value)]
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    def _path(self, path: Path) -> Any:
        if path.is_relative_to(self.path):
            return path.relative_to(self.path).as_posix()
        if path.is_dir():
            inside = sorted(path.iterdir())
            if any(file.name in _OF_A_MODEL for file in inside):
                return f"folder {_weights(path, max(file.stat().st_mtime_ns for file in inside))}"
            return {file.name: _file(file) for file in inside if file.is_file()}
        if not path.is_file():
            raise UserError(f"no such file or folder: {path}")
        if path.suffix in (".yaml", ".yml"):
            with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # who reads it will tell
                said = yaml.safe_load(path.read_text(encoding="utf-8"))
                return self.identity(here(said, path.parent))
        return _file(path)

    def _attempt(self, folder: Path, record: dict[str, Any], work: Callable[[Path], None]) -> None:
        started, before = time.monotonic(), record.get("seconds", 0.0)
        _write(folder, record)
        try:
            work(folder)
            record["done"] = True
        finally:
            record["seconds"] = round(before + time.monotonic() - started, 2)
            record["calls"] = Totals(*self._totals()).less(Totals(*record["before"]))
            _write(folder, record)

    def _totals(self) -> Totals:
        if not self.ledger.exists():
            return Totals()
        with Ledger(self.ledger) as ledger:
            return ledger.totals()


def here(value: Any, folder: Path = Path()) -> Any:
    """Settings in which a text that names a file or folder is a `Path`; lists and mappings too.

    Args:
        value: As a recipe has it.
        folder: What paths are relative to.
    """
    if isinstance(value, Mapping):
        return {name: here(item, folder) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [here(item, folder) for item in value]
    # `Path.exists` raises where a text is too long for a name.
    is_name = isinstance(value, str) and value and os.path.exists(folder / value)
    return folder / value if is_name else value


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / RECORD)


def _file(path: Path) -> str:
    return f"file {_checksum(path, path.stat().st_mtime_ns)}"


@cache
def _checksum(path: Path, changed: int) -> str:
    """Of a file; `changed` is its time of change, for the cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@cache
def _weights(path: Path, changed: int) -> str:
    """The same of a model's folder: weights are large, and many stages depend on them."""
    return fingerprint(path)


@cache
def _source(program: str) -> str:
    """A checksum of the module of `program:module.function`; empty where there is none."""
    module = program.removeprefix("program:").rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return hashlib.sha256(origin.read_bytes()).hexdigest()[:16] if origin else ""
