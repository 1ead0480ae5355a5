"""What the file keeps, and files that are no ledger."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.llm.ledger import LEASE, SCHEMA_VERSION, Call, Entry, Ledger, Totals
from alignment.llm.protocol import CallError, Reply

SOURCE = {"provider": "p", "model": "m", "fingerprint": "f", "verb": "chat"}


def test_a_reply_comes_back_as_it_was(tmp_path: Path):
    reply = Reply("text", "stop", 3, None, ((-0.1,),), ({"a": -0.5},))
    with Ledger(tmp_path / "a.ledger") as ledger:
        ledger.put(Entry(b"key", SOURCE, Call(reply, 0.25, 1.5, 2)))
    with Ledger(tmp_path / "a.ledger") as ledger:
        assert ledger.get(b"key") == reply
        assert ledger.get(b"other") is None


def test_totals_are_those_of_all_calls_and_can_be_told_apart_by_time():
    with Ledger() as ledger:
        assert ledger.totals() == Totals()
        ledger.put(Entry(b"one", SOURCE, Call(Reply("a", "stop", 10, 2), 0.25, 0.1, 1)))
        before = ledger.totals()
        ledger.put(Entry(b"two", SOURCE, Call(Reply("b", "stop", 20, None), 0.5, 0.1, 1)))
        ledger.put(Entry(b"three", SOURCE, Call(CallError("failed", "late"), None, 0.1, 1)))
        assert ledger.totals() == Totals(3, 30, 2, 0.75)
        assert ledger.totals().less(before) == Totals(2, 20, 0, 0.5)
        assert ledger.totals().less(before).plus(before) == ledger.totals()


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


def test_the_claim_of_a_living_process_never_lapses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = Ledger(tmp_path / "a.ledger"), Ledger(tmp_path / "a.ledger")
    first.claim(b"key")
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not second.claim(b"key")


def test_the_claim_of_another_machine_lapses_with_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = Ledger(tmp_path / "a.ledger")
    monkeypatch.setattr(first, "_owner", "elsewhere/1//ab")
    first.claim(b"key")
    second, now = Ledger(tmp_path / "a.ledger"), time.time()
    monkeypatch.setattr(time, "time", lambda: now + LEASE - 10)
    assert not second.claim(b"key")
    monkeypatch.setattr(time, "time", lambda: now + LEASE + 10)
    assert second.claim(b"key")


def test_a_commit_is_whole_or_not_at_all(tmp_path: Path):
    """The second record is too large for the room that is left; the first is not kept either."""
    ledger = Ledger(tmp_path / "a.ledger")
    ledger.put(Entry(b"before", SOURCE, Call(Reply("kept"), None, 0.1, 1)))
    ledger._db.execute("PRAGMA max_page_count = 12")
    small, large = (Call(Reply("x" * size), 1.0, 0.1, 1) for size in (10, 100_000))
    assert ledger.spent() == 0.0
    with pytest.raises(UserError) as caught:
        ledger.commit([Entry(b"a", SOURCE, small), Entry(b"b", SOURCE, large)], [b"c"])
    assert str(caught.value) == (
        f"cannot use the ledger {tmp_path / 'a.ledger'}: database or disk is full; what it holds "
        "is whole: make room and run the same command with `--resume`"
    )
    assert (ledger.outcomes(), ledger.spent()) == ({"answered": 1}, 0.0)
    assert Ledger(tmp_path / "a.ledger").claim(b"c")
    ledger.put(Entry(b"a", SOURCE, small))
    assert ledger.spent() == 1.0
    ledger.close()


def test_what_another_process_spends_is_seen_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A dollar here, two there; between two looks the own dollars alone are added."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    mine, other = (Ledger(tmp_path / "a.ledger") for _ in range(2))
    assert mine.spent() == 0.0
    other.put(Entry(b"theirs", SOURCE, Call(Reply("x"), 2.0, 0.1, 1)))
    mine.put(Entry(b"own", SOURCE, Call(Reply("x"), 1.0, 0.1, 1)))
    assert mine.spent() == 1.0
    now += 1.1
    assert mine.spent() == other.spent() == 3.0
    mine.close()
    other.close()


def test_damage_in_a_ledger_too_large_to_be_read_whole_is_told_when_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = damaged(tmp_path)
    monkeypatch.setattr("alignment.llm.ledger.LARGE", 1000)
    ledger = Ledger(path)
    with pytest.raises(UserError, match="malformed; move the file away to start a new one"):
        assert all(ledger.get(b"%d" % index) for index in range(200))


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


def damaged(folder: Path) -> Path:
    path = folder / "a.ledger"
    ledger = Ledger(path)
    for index in range(200):
        ledger.put(Entry(b"%d" % index, SOURCE, Call(Reply("x" * 500), None, 0.1, 1)))
    ledger.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b"\xff" * 8192
    path.write_bytes(content)
    return path


def test_a_damaged_ledger_is_refused(tmp_path: Path):
    path = damaged(tmp_path)
    with pytest.raises(UserError, match="move the file away to start a new one"):
        Ledger(path)


def test_processes_that_open_a_new_ledger_at_once_wait_for_each_other(tmp_path: Path):
    """SQLite does not wait by itself where the file is switched to WAL mode."""
    for number in range(60):
        gate, opener = os.pipe()
        children = []
        for _ in range(6):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.close(opener)
                    os.read(gate, 1)
                    Ledger(tmp_path / f"{number}.ledger")
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        os.close(gate)
        os.close(opener)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
