"""A whole job against a server that echoes the key, at debug level: the key is written nowhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llm.batch_server import Provider, serve_batches
from tests.llm.server import Answer, Body, serve

pytestmark = pytest.mark.slow

KEY = "sk-distinctive-0123456789abcdef"
ROWS = 12
ECHO = {"x-your-key": KEY, "set-cookie": f"key={KEY}"}
LOUD = (
    "import logging, sys; logging.basicConfig(level=logging.DEBUG); "
    "from alignment.__main__ import dispatch; from alignment.cli import run; "
    "run(dispatch, sys.argv[1:])"
)


def everything_written(folder: Path, *argv: str, status: int = 0) -> str:
    """What a command writes to its streams and to any file, with debug logging of all libraries."""
    env = {**os.environ, "JUDGE_KEY": KEY, "OPENAI_LOG": "debug"}
    command = [sys.executable, "-c", LOUD, *argv]
    done = subprocess.run(command, capture_output=True, env=env, cwd=folder, check=False)
    assert done.returncode == status, done.stderr.decode()[-2000:]
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return b"\n".join([done.stdout, done.stderr, *files]).decode("utf-8", "replace")


def rows(folder: Path) -> None:
    made = ({"prompt": f"say {i}", "response": "fine"} for i in range(ROWS))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def script(index: int, body: Body) -> Answer:
    """All that a server may do, with the key in every header, error and answer."""
    said = {"error": {"message": f"your key {KEY} is odd", "code": KEY}}
    answers = [
        Answer(f"## Revised answer\nyou sent {KEY}", headers=ECHO),
        Answer(status=500, error=said, headers=ECHO),
        Answer(status=429, error=said, headers={**ECHO, "retry-after": "0"}),
        Answer(status=400, error=said, headers=ECHO),
        Answer(raw=f'{{"choices": [{{"me {KEY}'.encode(), headers=ECHO),
        Answer(raw=json.dumps({"error": {"message": KEY}}).encode(), headers=ECHO),
        Answer(raw=json.dumps({"choices": [{"message": {"content": 5}, "x": KEY}]}).encode()),
        Answer("", message={"refusal": f"no, {KEY}"}, headers=ECHO),
        Answer(KEY, finish_reason=KEY, headers=ECHO),
    ]
    return answers[index % len(answers)]


def test_a_key_is_in_no_file_and_no_stream(tmp_path: Path):
    rows(tmp_path)
    with serve(script) as server:
        written = everything_written(
            *(tmp_path, "build", "clair", "--input", "in.jsonl", "--output", "out.jsonl"),
            *("--model", "tiny", "--base-url", server.url, "--api-key-env", "JUDGE_KEY"),
            *("--attempts", "3", "--concurrency", "2"),
        )
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in written
    assert "x-your-key" in written  # the libraries did log the headers
    assert "you sent ***" in written
    assert (tmp_path / "out.jsonl.report.json").is_file()
    assert "JUDGE_KEY" in written


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=307, headers={"location": f"http://elsewhere/{KEY}"}),
        Answer(status=401, error={"error": {"message": f"bad key {KEY}"}}, headers=ECHO),
        Answer(status=404, error={"error": {"message": f"no model `tiny` for {KEY}"}}),
        Answer(raw=f"<html>{KEY}</html>".encode(), content_type="text/html"),
    ],
    ids=["redirect", "refused key", "no such model", "no API"],
)
def test_a_key_is_not_in_the_line_that_ends_a_job(answer: Answer, tmp_path: Path):
    rows(tmp_path)
    with serve([answer], models=(f"tiny-{KEY}",)) as server:
        written = everything_written(
            *(tmp_path, "generate", "--prompts", "in.jsonl", "--output", "out.jsonl"),
            *("--model", "tiny", "--base-url", server.url, "--api-key-env", "JUDGE_KEY"),
            status=2,
        )
    assert "\nerror: " in written
    assert KEY not in written


def test_a_key_is_not_written_in_batch_mode(tmp_path: Path):
    rows(tmp_path)
    with serve_batches(Provider(ends=["failed"], errors=[{"message": KEY}])) as provider:
        written = everything_written(
            *(tmp_path, "generate", "--prompts", "in.jsonl", "--output", "out.jsonl"),
            *("--model", "tiny", "--base-url", provider.url, "--api-key-env", "JUDGE_KEY"),
            *("--mode", "batch", "--poll-interval", "0.05"),
            status=2,
        )
    assert "ended as failed" in written
    assert KEY not in written
