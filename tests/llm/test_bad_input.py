"""What a user gets wrong is one line that says what, where, and what to do."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from alignment.__main__ import main
from alignment.llm.ledger import SCHEMA_VERSION, Ledger
from tests.llm.server import Answer, Script, serve

NO_MODEL = Answer(status=404, error={"error": {"message": "no", "code": "model_not_found"}})
WRONG_KEY = Answer(status=401, error={"error": {"message": "bad key secret-123"}})
NO_API = Answer(raw=b"<html>Welcome</html>", content_type="text/html")


def told(capsys: pytest.CaptureFixture[str], folder: Path, script: Script, *words: str) -> str:
    """The one line of a job that fails."""
    (folder / "prompts.jsonl").write_text('{"prompt": "p"}\n{"prompt": "q"}\n')
    argv = ["generate", "--prompts", str(folder / "prompts.jsonl"), "--model", "tiny"]
    argv += ["--output", str(folder / "out.jsonl"), "--attempts", "1"]
    with serve(script, models=("tiny-b",)) as server, pytest.raises(SystemExit) as caught:
        main([*argv, "--base-url", server.url, *words])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert not (folder / "out.jsonl.partial").exists()
    return line.strip().replace(server.url, "URL").replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (NO_MODEL, "error: URL has no model `tiny`; did you mean `tiny-b`?"),
        (WRONG_KEY, "error: URL refuses the API key (401); the key was read from JUDGE_KEY"),
        (NO_API, "error: URL does not answer as an OpenAI-compatible API: "),
        (Answer(status=404), "error: URL/chat/completions answered 404; the address of an OpenAI"),
    ],
    ids=["model", "key", "html", "404"],
)
def test_a_server_that_cannot_be_asked(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    expected: str,
):
    monkeypatch.setenv("JUDGE_KEY", "secret-123")
    line = told(capsys, tmp_path, [answer], "--api-key-env", "JUDGE_KEY")
    assert line.startswith(expected)
    assert "secret-123" not in line


def newer(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (newer, f"the ledger calls has schema {SCHEMA_VERSION + 1}, newer than {SCHEMA_VERSION}; "),
        (other_database, "calls is an SQLite file but no ledger; name another one"),
        (lambda path: path.write_text("notes\n" * 500), "cannot use the ledger calls: file is not"),
        (Path.mkdir, "cannot use the ledger calls: unable to open database file; name another"),
    ],
    ids=["newer", "other database", "text", "folder"],
)
def test_a_ledger_that_cannot_be_used(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    expected: str,
):
    make(tmp_path / "calls")
    line = told(capsys, tmp_path, [Answer()], "--ledger", str(tmp_path / "calls"))
    assert line.startswith(f"error: {expected}")


def test_an_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out.jsonl").write_text("mine\n")
    line = told(capsys, tmp_path, [Answer()])
    assert line.startswith("error: out.jsonl exists; pass `--resume`")
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"


def test_a_cap_on_money_without_prices(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = told(capsys, tmp_path, [Answer()], "--max-cost", "5")
    assert line == "error: `max_cost` needs `price`: dollars for a million tokens of each kind"


def test_answers_that_are_no_answers_are_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Both rows are refused: nothing is written but their reasons."""
    line = told(capsys, tmp_path, [Answer("no", finish_reason="content_filter")])
    assert line.startswith("error: nothing came out of prompts.jsonl: refused (2 rows)")
    assert not (tmp_path / "out.jsonl").exists()
    rejects = (tmp_path / "out.jsonl.rejects.jsonl").read_text().splitlines()
    assert [json.loads(row)["reason"] for row in rejects] == ["refused", "refused"]
