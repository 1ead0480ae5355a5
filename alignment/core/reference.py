"""Reference log-probs that are computed once, stored by content and found again by any later run.

The key of an entry is the content of its group (token ids and where the prompt ends) under one
reference (its weights, the settings that change its outputs, precision and layout). Reordering,
filtering, editing other rows, seeds, epochs and objectives leave it valid; a changed row is a new
key. Every group is scored alone, in a batch fixed by its own content, so that an interrupted fill
and an uninterrupted one store the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alignment.cli import UserError
from alignment.core.packing import Layout, TokenGroup

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, logps BLOB NOT NULL, crc INTEGER NOT NULL
) WITHOUT ROWID
"""
_FORMAT = "1"


class Groups(Protocol):
    """A sequence of token groups that also knows their lengths."""

    def __len__(self) -> int:
        """Number of groups."""

    def __getitem__(self, index: int) -> TokenGroup:
        """One group."""

    def lengths(self, layout: Layout) -> np.ndarray:
        """(G,) positions of each group."""


class ReferenceStore:
    """The stored log-probs of one reference.

    Several processes may read and write one store at once. SQLite keeps its journal as a file, not
    in memory that processes share, so that a disk may serve several machines if its locks do.

    Args:
        folder: Where stores live; created where missing.
        fingerprint: Names the reference, see `fingerprint_files`.
        layout: Layout that entries are computed in.
    """

    def __init__(self, folder: str | Path, fingerprint: str, layout: Layout) -> None:
        name = hashlib.sha256("\0".join((_FORMAT, fingerprint, layout)).encode()).hexdigest()
        self.path = Path(folder) / f"{name[:32]}.sqlite"
        self._connection: tuple[int, sqlite3.Connection] | None = None

    def get(self, group: TokenGroup) -> np.ndarray | None:
        """(n,) float32 log-probs of a group's response tokens; None if missing or damaged."""
        with self._opened() as database:
            row = database.execute(
                "SELECT logps, crc FROM entries WHERE key = ?", (content_key(group),)
            ).fetchone()
        if row is None or zlib.crc32(row[0]) != row[1]:
            return None
        logps = np.frombuffer(row[0], dtype=np.float32)
        return logps if len(logps) == sum(map(len, group.responses)) else None

    def put(self, entries: Iterable[tuple[TokenGroup, np.ndarray]]) -> None:
        """Stores log-probs of some groups in one transaction."""
        rows = []
        for group, logps in entries:
            blob = np.asarray(logps, dtype=np.float32).tobytes()
            rows.append((content_key(group), blob, zlib.crc32(blob)))
        with self._opened() as database, database:
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database.

        Raises:
            UserError: The file is damaged or cannot be used.
        """
        try:
            yield self._database
        except sqlite3.Error as error:
            raise UserError(
                f"stored reference {self.path} cannot be used ({error}): delete it, or name "
                "another `ref_cache_dir`"
            ) from None

    @property
    def _database(self) -> sqlite3.Connection:
        """A connection of this process; SQLite's must not cross a fork."""
        if self._connection is None or self._connection[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=60)
            database.execute(_SCHEMA)
            self._connection = (os.getpid(), database)
        return self._connection[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_connection": None}


class WithReference:
    """Groups that bring their stored reference along.

    Args:
        groups: Groups whose every entry the store holds.
        store: Where from.
    """

    def __init__(self, groups: Groups, store: ReferenceStore) -> None:
        self.groups, self.store = groups, store

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> TokenGroup:
        group = self.groups[index]
        logps = self.store.get(group)
        if logps is None:
            raise UserError(
                f"{group.origin}: its stored reference in {self.store.path} is missing or damaged; "
                "run again and it is computed anew"
            )
        ends = np.cumsum([len(response) for response in group.responses])[:-1]
        return replace(group, ref_logps=[part.tolist() for part in np.split(logps, ends)])

    def lengths(self, layout: Layout) -> np.ndarray:
        """(G,) positions of each group."""
        return self.groups.lengths(layout)


def missing(groups: Groups, store: ReferenceStore) -> list[int]:
    """The indices of groups without a valid entry, one for each distinct content."""
    found: dict[bytes, int] = {}
    for index in range(len(groups)):
        group = groups[index]
        if store.get(group) is None:
            found.setdefault(content_key(group), index)
    return list(found.values())


def content_key(group: TokenGroup) -> bytes:
    """Identifies what a reference is asked for: the ids, and where contexts and responses begin."""
    digest = hashlib.sha256()
    parts: Sequence[Sequence[int]] = [group.prefix, *group.contexts, *group.responses]
    digest.update(array("q", [len(group.responses), *(len(part) for part in parts)]).tobytes())
    for part in parts:
        digest.update(array("q", part).tobytes())
    return digest.digest()


def fingerprint_files(folder: Path, memo: Path) -> str:
    """Names the weights and the configuration in a folder by their content.

    Args:
        folder: With weights and configuration.
        memo: JSON file of content hashes already known, by path, size and time of change.

    Returns:
        A hex digest.
    """
    known = json.loads(memo.read_text()) if memo.is_file() else {}
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".bin", ".json") or "token" in path.name:
            continue
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}:{known[key]}".encode())
    memo.parent.mkdir(parents=True, exist_ok=True)
    scratch = memo.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(known))
    scratch.replace(memo)
    return digest.hexdigest()
