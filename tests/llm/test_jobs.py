"""Whole jobs that are killed, interrupted, doubled, starved of disk or left by their server."""

import asyncio
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alignment.cli import say
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.openai import OpenAIBackend
from alignment.llm.pacing import Limits
from alignment.llm.protocol import Message
from alignment.llm.rows import map_rows
from tests.llm.server import OUTCOMES, Answer, Body, Mix, ScriptedServer, last_words, serve

pytestmark = pytest.mark.slow

CONCURRENCY = 16
STAGES = ("sending", "waiting", "committing", "writing")


def echo(index: int, body: Body) -> Answer:
    return Answer(f"answer to {last_words(body)}", delay=0.002)


class Job(NamedTuple):
    """A command that answers prompts, and its files."""

    folder: Path
    url: str
    rows: int

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def ledger(self) -> Path:
        return self.folder / "out.jsonl.ledger"

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        self.folder.mkdir(exist_ok=True)
        prompts = self.folder / "prompts.jsonl"
        rows = ({"prompt": f"question {number}"} for number in range(self.rows))
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-m", "alignment", "generate", "--prompts", prompts]
        command += ["--output", self.output, "--model", "tiny", "--base-url", self.url]
        command += ["--concurrency", CONCURRENCY, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*map(str, command)], stdout=pipe, stderr=pipe, text=True, **options
        )

    def run(self, *words: object, **options: Any) -> tuple[int, str]:
        """The exit status, and what was said on standard error."""
        job = self.start(*words, **options)
        _, errors = job.communicate(timeout=300)
        return job.returncode, errors

    def recorded(self) -> int:
        """Calls in the ledger."""
        try:
            with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as db:
                return int(db.execute("SELECT count(*) FROM calls").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # not there yet


def clean(folder: Path, rows: int) -> bytes:
    """The output of a job that nothing happens to."""
    with serve(echo) as server:
        job = Job(folder / "clean", server.url, rows)
        assert job.run() == (0, "")
    return job.output.read_bytes()


def until(reached: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Waits for a moment of a running job."""
    while not reached():
        assert job.poll() is None, f"the job ended before: {job.communicate()}"
        time.sleep(0.0005)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill(job: Job, server: ScriptedServer, stage: str, target: int, lost: int) -> None:
    """Kills a job in a stage, once so many calls are made or recorded beside those lost before."""
    running = job.start("--resume")
    wal, partial = Path(f"{job.ledger}-wal"), Path(f"{job.output}.partial")
    if stage == "writing":
        until(lambda: size(partial) > 0, running)
        written = size(partial)
        until(lambda: size(partial) > written, running)
    elif stage == "committing":
        until(lambda: job.recorded() >= target, running)
        before = wal.stat()
        until(lambda: wal.stat().st_mtime_ns > before.st_mtime_ns, running)
    else:
        until(lambda: len(server.bodies) >= target + lost, running)
        if stage == "waiting":
            server.open.clear()
            until(lambda: server.in_flight == CONCURRENCY, running)
    running.kill()
    running.communicate()
    server.open.set()
    server.settle()


def killed_and_rerun(folder: Path, rows: int, kills: int, seed: int) -> None:
    expected = clean(folder, rows)
    draw = random.Random(seed)
    stages = [STAGES[number % len(STAGES)] for number in range(kills)]
    draw.shuffle(stages)
    with serve(echo) as server:
        job, lost = Job(folder / "killed", server.url, rows), 0
        for number, stage in enumerate(stages):
            target = int(rows * (number + draw.random()) / (kills + 1))
            kill(job, server, stage, max(target, 1), lost)
            recorded = job.recorded()
            in_flight = len(server.bodies) - recorded - lost
            lost += in_flight
            say(
                f"seed {seed}, kill {number + 1} of {kills} while {stage}: "
                f"{len(server.bodies)} requests, {recorded} recorded, {in_flight} in flight"
            )
            assert 0 <= in_flight <= CONCURRENCY
            assert not job.output.exists()
        assert job.run("--resume") == (0, "")
        say(f"seed {seed}: {len(server.bodies)} requests for {rows} rows, {lost} in flight")
        assert len(server.bodies) == rows + lost
    assert job.output.read_bytes() == expected
    assert sorted(path.name for path in job.folder.iterdir()) == [
        *("out.jsonl", "out.jsonl.ledger", "prompts.jsonl")
    ]


def test_killed_in_every_stage_and_rerun_a_job_loses_only_calls_in_flight(tmp_path: Path):
    killed_and_rerun(tmp_path, rows=600, kills=8, seed=1)


@pytest.mark.long
def test_killed_at_twenty_moments_a_job_loses_only_calls_in_flight(tmp_path: Path):
    killed_and_rerun(tmp_path, rows=2000, kills=20, seed=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_a_job_writes_what_is_finished_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
):
    expected = clean(tmp_path, 300)
    with serve(lambda index, body: Answer(echo(index, body).text, delay=0.05)) as server:
        job = Job(tmp_path / "stopped", server.url, 300)
        running = job.start()
        until(lambda: job.recorded() >= 100, running)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
        kept = job.output.read_bytes()
        missing = 300 - kept.count(b"\n")
        assert (running.returncode, errors.splitlines()[-1]) == (
            130,
            f"error: interrupted: {missing} of 300 rows are missing in {job.output}; "
            "run the same command with `--resume` to go on",
        )
        assert 100 <= kept.count(b"\n") == job.recorded() == len(server.bodies) < 300
        lines = iter(expected.splitlines())
        assert all(line in lines for line in kept.splitlines())  # some of them, in their order
        status, errors = job.run()
        assert (status, errors.startswith(f"error: {job.output} exists; pass `--resume`")) == (
            *(2, True),
        )
        assert job.run("--resume") == (0, "")
        assert len(server.bodies) == 300
    assert job.output.read_bytes() == expected


def test_interrupted_twice_a_job_ends_at_once(tmp_path: Path):
    with serve(echo) as server:
        server.open.clear()
        running = Job(tmp_path / "job", server.url, 50).start()
        until(lambda: server.in_flight == CONCURRENCY, running)
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        assert "calls in flight may finish; interrupt again" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(5) == -signal.SIGINT


def test_at_its_cap_a_job_writes_what_was_paid_for_and_says_what_was_spent(tmp_path: Path):
    """An answer has 2 tokens at a cent and may have 4: after 24 the next might break 50 cents."""
    expected = clean(tmp_path, 40)
    with serve(echo) as server:
        job = Job(tmp_path / "dear", server.url, 40)
        price = ("--max-tokens", 4, "--price", 0, 10_000, "--max-cost")
        status, errors = job.run(*price, 0.5)
        assert (status, errors) == (
            2,
            "error: `--max-cost 0.5` is met: $0.4800 are spent and the next call may cost "
            f"$0.0400: 16 of 40 rows are missing in {job.output}; raise it and pass `--resume` "
            "to go on\n",
        )
        assert job.output.read_bytes().count(b"\n") == len(server.bodies) == 24
        assert job.run("--resume", *price, 5) == (0, "")
        assert len(server.bodies) == 40
    made = [json.loads(line)["response"] for line in job.output.read_text().splitlines()]
    assert made == [json.loads(line)["response"] for line in expected.splitlines()]


def test_a_full_disk_is_one_line_and_a_rerun_completes(tmp_path: Path):
    """Files of the first run may not grow beyond 300 kB, which the ledger soon does."""
    expected = clean(tmp_path, 400)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    with serve(echo) as server:
        job = Job(tmp_path / "full", server.url, 400)
        status, errors = job.run(preexec_fn=little_room)
        assert (status, errors.count("\n")) == (2, 1)
        assert errors.startswith(f"error: cannot use the ledger {job.ledger}: disk")
        assert errors.endswith("make room and run the same command with `--resume`\n")
        assert not job.output.exists()
        before, recorded = len(server.bodies), job.recorded()
        assert 0 < recorded <= before <= recorded + CONCURRENCY
        assert job.run() == (0, "")
        assert len(server.bodies) == before + 400 - recorded
    assert job.output.read_bytes() == expected


@contextmanager
def mortal_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, which can die."""
    code = (
        "import threading; from tests.llm.server import serve; from tests.llm.test_jobs import echo"
        f"\nwith serve(echo, port={port}):\n    threading.Event().wait()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "."})
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.05)
        yield server
    finally:
        server.kill()
        server.wait()


def outlived(folder: Path, seconds: float) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    expected = clean(folder, 1000)
    job = Job(folder / "left", f"http://127.0.0.1:{port}/v1", 1000)
    with mortal_server(port):
        running = job.start()
        until(lambda: job.recorded() >= 200, running)
    died = time.monotonic()
    time.sleep(seconds)
    assert running.poll() is None
    with mortal_server(port):
        _, errors = running.communicate(timeout=300)
        say(f"the job ended {time.monotonic() - died:.0f} s after its server died")
    assert (running.returncode, errors) == (0, "")
    assert job.output.read_bytes() == expected


def test_a_job_outlives_the_death_of_its_server(tmp_path: Path):
    outlived(tmp_path, 2)


@pytest.mark.long
def test_a_job_outlives_a_minute_without_its_server(tmp_path: Path):
    outlived(tmp_path, 60)


def test_two_jobs_on_one_ledger_ask_nothing_twice(tmp_path: Path):
    expected = clean(tmp_path, 200)
    with serve(echo) as server:
        jobs = [Job(tmp_path / name, server.url, 200) for name in ("first", "second")]
        running = [job.start("--ledger", tmp_path / "shared.ledger") for job in jobs]
        assert [job.communicate(timeout=60)[1] for job in running] == ["", ""]
        assert Counter(map(last_words, server.bodies)).most_common(1)[0][1] == 1
        assert len(server.bodies) == 200
    assert [job.output.read_bytes() for job in jobs] == [expected] * 2


def test_two_jobs_do_not_write_one_output(tmp_path: Path):
    with serve(echo) as server:
        server.open.clear()
        job = Job(tmp_path / "job", server.url, 20)
        first = job.start()
        until(lambda: server.in_flight > 0, first)
        told = f"error: another job is writing {job.output}; wait for it, or name another output\n"
        assert job.run() == job.run("--resume") == job.run("--overwrite") == (2, told)
        server.open.set()
        assert first.communicate(timeout=60)[1] == ""
    assert len(server.bodies) == 20
    assert job.output.read_bytes() == clean(tmp_path, 20)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_of_a_mixed_server_ends_as_what_its_last_request_met(tmp_path: Path, seed: int):
    """Three requests at most, and each is troubled with 45%: some rows run out of them."""
    mix = Mix(
        seed,
        answered=45,
        slow=5,
        refused=5,
        truncated=5,
        **{"429": 10, "500": 10, "dropped": 10, "cut_json": 10},
    )

    async def job(url: str) -> None:
        with Ledger(tmp_path / "calls.ledger") as ledger:
            limits = Limits(concurrency=8, attempts=3, backoff=0.001)
            async with LLM(OpenAIBackend("tiny", url), ledger, limits) as llm:

                async def build(row: Any) -> list[dict[str, Any]]:
                    prompt: list[Message] = [{"role": "user", "content": row["prompt"]}]
                    return [{**row, "response": (await llm.chat(prompt)).text}]

                rows = ((f"in:{n}", {"prompt": f"question {n}"}) for n in range(300))
                await map_rows(rows, build, tmp_path / "out.jsonl")
            assert llm.usage.requests == len(mix.log)
            assert ledger.outcomes() == Counter(OUTCOMES[name] for name in mix.last().values())

    with serve(mix) as server:
        asyncio.run(job(server.url))
    ended = {prompt: OUTCOMES[name] for prompt, name in mix.last().items()}
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["response"] for row in kept} == {"fine"}
    assert [row["prompt"] for row in kept] == [
        f"question {n}" for n in range(300) if ended[f"question {n}"] == "answered"
    ]
    rejects = (tmp_path / "out.jsonl.rejects.jsonl").read_text().splitlines()
    reasons = {row["row"]["prompt"]: row["reason"] for row in map(json.loads, rejects)}
    assert reasons == {prompt: end for prompt, end in ended.items() if end != "answered"}
    assert set(reasons.values()) == {*OUTCOMES.values()} - {"answered"}
    assert max(Counter(prompt for prompt, _ in mix.log).values()) == 3
