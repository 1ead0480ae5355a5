"""The ledger: one row of SQLite for each call, so that resuming is rerunning."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from alignment.cli import UserError
from alignment.llm.protocol import CallError, Reply

SCHEMA_VERSION = 1
LEASE = 900.0
"""Seconds after which the claim of another machine lapses: whether its owner lives is unknown."""
_LOOK = 1.0
"""Least seconds between two sums over what other processes have spent."""
LARGE = 1 << 30
"""Bytes beyond which opening does not read the whole file; damage is told when it is met."""

_SCHEMA = """
CREATE TABLE calls (
    key BLOB PRIMARY KEY,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    verb TEXT NOT NULL,
    outcome TEXT NOT NULL,
    finished INTEGER NOT NULL,  -- answered, refused or truncated: not asked again
    text TEXT,
    finish_reason TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    logps TEXT,                 -- JSON
    top_logprobs TEXT,          -- JSON
    error TEXT,
    price REAL,                 -- dollars, of all attempts
    latency REAL,               -- seconds, last attempt
    attempts INTEGER NOT NULL,  -- requests sent for this call by the run that ended it
    at REAL NOT NULL            -- seconds since 1970
);
CREATE TABLE claims (
    key BLOB PRIMARY KEY,
    owner TEXT NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
"""

_GET = (
    "SELECT text, finish_reason, prompt_tokens, completion_tokens, logps, top_logprobs"
    " FROM calls WHERE key = ? AND finished"
)
_ROOM = "what it holds is whole: make room and run the same command with `--resume`"
_REMEDIES = {
    sqlite3.SQLITE_FULL: _ROOM,
    sqlite3.SQLITE_IOERR: _ROOM,
    sqlite3.SQLITE_BUSY: "another process holds on to it",
    sqlite3.SQLITE_READONLY: "name another with `--ledger`",
    sqlite3.SQLITE_CANTOPEN: "name another with `--ledger`",
}
_PATIENCE = 60.0
"""Seconds to wait for another process."""

_NO_REPLY = {field.name: None for field in fields(Reply)}


@dataclass(frozen=True)
class Call:
    """How a call ended and what it took.

    Attributes:
        result: The reply, or the error where there is none.
        price: Dollars of the last attempt, None where no price is known.
        latency: Seconds of the last attempt.
        attempts: Requests sent.
    """

    result: Reply | CallError
    price: float | None
    latency: float
    attempts: int


class Entry(NamedTuple):
    """What is recorded of a call.

    Attributes:
        key: The call's key.
        source: `provider`, `model`, `fingerprint` and `verb`.
        call: What came of it.
    """

    key: bytes
    source: Mapping[str, str]
    call: Call


class Totals(NamedTuple):
    """What the calls of a ledger come to.

    Attributes:
        calls: Calls that have ended, whether answered or not.
        prompt_tokens: Tokens read, of calls whose server says so.
        completion_tokens: Tokens written, likewise.
        dollars: Of calls with a known price.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0

    def less(self, earlier: Totals) -> Totals:
        """What was added since."""
        return Totals(
            self.calls - earlier.calls,
            self.prompt_tokens - earlier.prompt_tokens,
            self.completion_tokens - earlier.completion_tokens,
            self.dollars - earlier.dollars,
        )

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.dollars + other.dollars,
        )


@dataclass
class Reserve:
    """Money set aside.

    Attributes:
        calls: For how many calls.
        dollars: In all.
    """

    calls: int = 0
    dollars: float = 0.0

    def take(self, dollars: float) -> None:
        """Sets money aside for one call."""
        self.calls += 1
        self.dollars += dollars

    def give_back(self, dollars: float) -> None:
        """Frees what was set aside for one call."""
        self.calls -= 1
        self.dollars = self.dollars - dollars if self.calls else 0.0  # no rounding is left over


class Ledger:
    """Finished calls by key, shared by all processes that open the same file.

    Args:
        path: The file, created where missing; None keeps the calls in memory.
        behind: Another ledger, to which nobody writes meanwhile; what it has answered is answered
            here too. It need not exist.

    Attributes:
        reserved: What the requests of this process that are in flight may cost.

    Raises:
        UserError: The file is no ledger, is damaged, or was written by a newer version.
    """

    def __init__(self, path: str | Path | None = None, behind: str | Path | None = None) -> None:
        self.path = path
        self.reserved = Reserve()
        self._spent: float | None = None
        self._foreign: tuple[int, float] = (0, 0.0)  # version and time of the last look
        pid = os.getpid()
        self._owner = f"{socket.gethostname()}/{pid}/{_birth(pid)}/{secrets.token_hex(4)}"
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._db = sqlite3.connect(path or ":memory:", timeout=_PATIENCE, isolation_level=None)
            self._open()
            self._answering = [self._db, *_read_only(behind)]

    def get(self, key: bytes) -> Reply | None:
        """The reply of a finished call, None where the call is still to be made.

        Raises:
            UserError: The file is damaged.
        """
        try:
            found = (db.execute(_GET, (key,)).fetchone() for db in self._answering)
            row = next(filter(None, found), None)
        except sqlite3.Error as error:
            raise self._error(error) from None
        if row is None:
            return None
        text, finish_reason, prompt_tokens, completion_tokens, logps, top_logprobs = row
        return Reply(
            text,
            finish_reason,
            prompt_tokens,
            completion_tokens,
            None if logps is None else tuple(map(tuple, json.loads(logps))),
            None if top_logprobs is None else tuple(json.loads(top_logprobs)),
        )

    def put(self, entry: Entry) -> None:
        """Records how a call ended and gives up the claim on it.

        Args:
            entry: A failure never replaces an answer.

        Raises:
            UserError: The disk is full, or the file is damaged.
        """
        self.commit([entry], [])

    def claim(self, key: bytes) -> bool:
        """Takes the right to make a call; False while another living process has it."""
        return key in self.commit([], [key])

    def commit(self, entries: Iterable[Entry], claims: Iterable[bytes]) -> set[bytes]:
        """Several of the above in one transaction.

        Args:
            entries: As for `put`.
            claims: Keys to claim.

        Returns:
            Those that were claimed.

        Raises:
            UserError: The disk is full, or the file is damaged; nothing of it was done.
        """
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for entry in entries:
                row = _columns(entry)
                self._db.execute(_put_statement(tuple(row)), row)
                self._db.execute("DELETE FROM claims WHERE key = ?", (entry.key,))
            claimed = {key for key in claims if self._claim(key)}
        if self._spent is not None:
            self._spent += sum(entry.call.price or 0.0 for entry in entries)
        return claimed

    def release(self, key: bytes) -> None:
        """Gives up the claim on a call that was not made."""
        with self._told():
            self._db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def absorb(self, other: str | Path) -> None:
        """Records what another ledger holds; a failure never replaces an answer.

        Raises:
            UserError: One of the files cannot be used.
        """
        Ledger(other).close()  # takes in what a killed process has left beside the file
        with self._told():
            self._db.execute("ATTACH ? AS other", (str(other),))
            columns = [name for _, name, *_ in self._db.execute("PRAGMA table_info(calls)")]
            self._db.execute(_absorb_statement(columns))
            self._db.execute("DETACH other")
        self._spent = None

    def disown(self) -> None:
        """Gives up all claims, also those of others: for a ledger that nobody else has open."""
        with self._told():
            self._db.execute("DELETE FROM claims")

    def checkpoint(self) -> None:
        """Has the file hold all calls by itself, safe from a power cut, for others as `behind`."""
        with self._told():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def outcomes(self) -> dict[str, int]:
        """How many calls ended in which way."""
        return dict(self._db.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome"))

    def totals(self) -> Totals:
        """What all calls on record come to."""
        with self._told():
            found = self._db.execute(
                "SELECT count(*), total(prompt_tokens), total(completion_tokens), total(price)"
                " FROM calls"
            ).fetchone()
        calls, prompt_tokens, completion_tokens, dollars = found
        return Totals(calls, int(prompt_tokens), int(completion_tokens), dollars)

    def spent(self) -> float:
        """Dollars on record; what other processes spend is seen within a second."""
        with self._told():
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            seen, looked_at = self._foreign
            now = time.monotonic()
            if self._spent is None or (version != seen and now - looked_at > _LOOK):
                (self._spent,) = self._db.execute("SELECT total(price) FROM calls").fetchone()
                self._foreign = (version, now)
        return float(self._spent or 0.0)

    def close(self) -> None:
        """Gives up all claims and closes the file."""
        with suppress(sqlite3.Error):  # on a full disk; claims end with the process anyway
            self._db.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
        for db in self._answering:
            db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _claim(self, key: bytes) -> bool:
        now = time.time()
        held = self._db.execute("SELECT owner, at FROM claims WHERE key = ?", (key,)).fetchone()
        if held and held[0] != self._owner and _alive(*held):
            return False
        self._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._owner, now))
        return True

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _error(self, error: sqlite3.Error) -> UserError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        remedy = _REMEDIES.get(code, "move the file away to start a new one")
        return UserError(f"cannot use the ledger {self.path}: {error}; {remedy}")

    def _write_ahead(self) -> None:
        """Switches to WAL mode: a commit survives the death of the process, not every power cut.

        For others who open a new file at the same moment SQLite does not wait here by itself.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return

    def _open(self) -> None:
        self._write_ahead()
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                return
        if version > SCHEMA_VERSION:
            raise UserError(
                f"the ledger {self.path} has schema {version}, newer than {SCHEMA_VERSION}; "
                "update contrastive-alignment, or name another ledger"
            )
        if version == 0:
            raise UserError(f"{self.path} is an SQLite file but no ledger; name another one")
        if self.path is not None and Path(self.path).stat().st_size > LARGE:
            return
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"it is damaged ({verdict})")


def _columns(entry: Entry) -> dict[str, Any]:
    call, result = entry.call, entry.call.result
    reply = result if isinstance(result, Reply) else None
    return {
        "key": entry.key,
        **entry.source,
        **(vars(reply) if reply else _NO_REPLY),
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "logps": _json(reply and reply.logps),
        "top_logprobs": _json(reply and reply.top_logprobs),
        "outcome": result.outcome,
        "finished": reply is not None,
        "error": None if reply else str(result),
        "price": call.price,
        "latency": call.latency,
        "attempts": call.attempts,
        "at": time.time(),
    }


@cache
def _put_statement(columns: tuple[str, ...]) -> str:
    slots = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO calls ({', '.join(columns)}) VALUES ({slots}) {_unless_finished(columns)}"


def _absorb_statement(columns: Sequence[str]) -> str:
    names = ", ".join(columns)
    # Without its `WHERE`, SQLite takes the conflict's `ON` for that of a join.
    source = f"SELECT {names} FROM other.calls WHERE true"
    return f"INSERT INTO calls ({names}) {source} {_unless_finished(columns)}"


def _unless_finished(columns: Iterable[str]) -> str:
    """Replaces a failure, once, by what comes later; the money of both is spent."""
    fresh = {name: f"excluded.{name}" for name in columns}
    fresh["price"] = "coalesce(calls.price + excluded.price, excluded.price, calls.price)"
    settings = ", ".join(f"{name} = {value}" for name, value in fresh.items())
    earlier = "NOT calls.finished AND calls.at <> excluded.at"
    return f"ON CONFLICT(key) DO UPDATE SET {settings} WHERE {earlier}"


def _read_only(path: str | Path | None) -> list[sqlite3.Connection]:
    """A ledger to which nobody writes, read without locks: it may lie on a network's disk."""
    if path is None or not Path(path).exists():
        return []
    address = f"{Path(path).absolute().as_uri()}?immutable=1"
    return [sqlite3.connect(address, uri=True)]


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _alive(owner: str, claimed_at: float) -> bool:
    host, pid, birth, _ = owner.rsplit("/", 3)
    if host != socket.gethostname():
        return time.time() - claimed_at < LEASE
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # alive, and another user's
    return _birth(int(pid)) == birth


def _birth(pid: int) -> str:
    """When a process began, to tell it from a later one of its number; empty where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
