"""What the file keeps, and files that are no ledger."""

import os
import sqlite3
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.llm.ledger import SCHEMA_VERSION, Call, Entry, Ledger
from alignment.llm.protocol import CallError, Reply

SOURCE = {"provider": "p", "model": "m", "fingerprint": "f", "verb": "chat"}


def test_a_reply_comes_back_as_it_was(tmp_path: Path):
    reply = Reply("text", "stop", 3, None, ((-0.1,),), ({"a": -0.5},))
    with Ledger(tmp_path / "a.ledger") as ledger:
        ledger.put(Entry(b"key", SOURCE, Call(reply, 0.25, 1.5, 2)))
    with Ledger(tmp_path / "a.ledger") as ledger:
        assert ledger.get(b"key") == reply
        assert ledger.get(b"other") is None


def test_a_failure_never_replaces_an_answer():
    ledger = Ledger()
    ledger.put(Entry(b"key", SOURCE, Call(Reply("answer"), None, 0.1, 1)))
    ledger.put(Entry(b"key", SOURCE, Call(CallError("failed", "late"), None, 0.1, 1)))
    assert ledger.get(b"key") == Reply("answer")


def test_an_answer_replaces_a_failure_with_all_its_columns():
    ledger = Ledger()
    ledger.put(Entry(b"key", SOURCE, Call(CallError("failed", "busy"), None, 0.1, 8)))
    assert ledger.get(b"key") is None
    ledger.put(Entry(b"key", SOURCE, Call(Reply("answer"), 0.5, 0.1, 1)))
    row = ledger._db.execute("SELECT outcome, error, price, attempts FROM calls").fetchall()
    assert row == [("answered", None, 0.5, 1)]


def test_a_claim_holds_against_others_until_it_is_given_up(tmp_path: Path):
    first, second = Ledger(tmp_path / "a.ledger"), Ledger(tmp_path / "a.ledger")
    assert first.claim(b"key")
    assert not second.claim(b"key")
    first.release(b"key")
    assert second.claim(b"key")
    second.close()
    assert first.claim(b"key")


def test_the_claim_of_a_dead_process_is_void(tmp_path: Path):
    path = tmp_path / "a.ledger"
    child = os.fork()
    if child == 0:
        Ledger(path).claim(b"key")
        os._exit(0)
    os.waitpid(child, 0)
    assert Ledger(path).claim(b"key")


def test_a_ledger_of_a_newer_version_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "a.ledger"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(UserError, match=r"a\.ledger has schema 2, newer than 1; update"):
        Ledger(path)


def test_a_file_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes\n" * 100)
    with pytest.raises(UserError, match=r"cannot use the ledger .*notes\.txt: file is not a data"):
        Ledger(path)
    assert path.read_text() == "these are my notes\n" * 100


def test_another_database_is_refused(tmp_path: Path):
    path = tmp_path / "other.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(UserError, match="is an SQLite file but no ledger"):
        Ledger(path)


def test_a_damaged_ledger_is_refused(tmp_path: Path):
    path = tmp_path / "a.ledger"
    ledger = Ledger(path)
    for index in range(200):
        ledger.put(Entry(b"%d" % index, SOURCE, Call(Reply("x" * 500), None, 0.1, 1)))
    ledger.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b"\xff" * 8192
    path.write_bytes(content)
    with pytest.raises(UserError, match="move the file away to start a new one"):
        Ledger(path)
