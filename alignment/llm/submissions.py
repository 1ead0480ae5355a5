"""Which calls were submitted in which batch, kept in the ledger's file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from alignment.cli import UserError

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS batches"
    " (label TEXT PRIMARY KEY, id TEXT, at REAL NOT NULL)",  # no id before the provider gave one
    "CREATE TABLE IF NOT EXISTS batched (call TEXT PRIMARY KEY, label TEXT NOT NULL) WITHOUT ROWID",
)


class Submission(NamedTuple):
    """A batch on record.

    Attributes:
        label: Its name here, by which the provider can be asked for it.
        id: Its name at the provider; None where the process ended before that was known.
        at: When it was recorded, seconds since 1970.
    """

    label: str
    id: str | None
    at: float


class Submissions:
    """Batches by the calls in them: on disk before anything is sent.

    Args:
        path: The ledger's file; None keeps them in memory, as such a ledger keeps its calls.

    Raises:
        UserError: The file cannot be used; so every method.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = path
        with self._told():
            self._db = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)
            for statement in _SCHEMA:
                self._db.execute(statement)

    def of(self, call: str) -> Submission | None:
        """The batch that a call was submitted in."""
        with self._told():
            row = self._db.execute(
                "SELECT label, id, at FROM batches JOIN batched USING (label) WHERE call = ?",
                (call,),
            ).fetchone()
        return None if row is None else Submission(*row)

    def add(self, label: str, calls: Iterable[str]) -> Submission:
        """Records that a batch is about to be submitted."""
        made = Submission(label, None, time.time())
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?)", made)
            pairs = ((call, label) for call in calls)
            self._db.executemany("INSERT OR REPLACE INTO batched VALUES (?, ?)", pairs)
        return made

    def name(self, label: str, batch: str) -> None:
        """Records a batch's name at the provider."""
        with self._told():
            self._db.execute("UPDATE batches SET id = ? WHERE label = ?", (batch, label))

    def calls(self, label: str) -> set[str]:
        """The calls in a batch that are not forgotten."""
        with self._told():
            rows = self._db.execute("SELECT call FROM batched WHERE label = ?", (label,))
            return {call for (call,) in rows}

    def forget(self, calls: Iterable[str]) -> None:
        """Frees calls that came to nothing, so that they may be submitted again."""
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("DELETE FROM batched WHERE call = ?", ((call,) for call in calls))

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"cannot keep batches in the ledger {self._path}: {error}; mend that and run again "
                "with `--resume`"
            ) from None
