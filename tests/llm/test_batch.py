"""Batches: submitted once, found again by a rerun, every call with an answer or a typed outcome."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm import batch
from alignment.llm.batch import BatchBackend, BatchLLM, Bounds
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.openai import OpenAIBackend
from alignment.llm.pacing import Limits
from alignment.llm.protocol import CallError, Reply, Request, Sampling, Stopped
from alignment.llm.submissions import Submissions
from tests.llm.batch_server import (
    Line,
    Provider,
    answered,
    echo,
    serve_batches,
    unanswered,
    with_status,
)

QUICK = Bounds(stall=0.05, poll=0.01)


def messages(index: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"question {index}"}]


def number(line: Line) -> int:
    return int(line["body"]["messages"][-1]["content"].split()[-1])


async def outcome(llm: LLM, index: int) -> str:
    try:
        return (await llm.chat(messages(index))).text
    except CallError as error:
        return f"{error.outcome}: {error}"


def ask(
    provider: Provider,
    count: int,
    ledger: Ledger | None = None,
    bounds: Bounds = QUICK,
    limits: Limits | None = None,
) -> tuple[list[str], LLM]:
    """The answers to `question 0`, `question 1`, ..., or why there are none."""
    limits = limits or Limits(attempts=2, backoff=0.0)

    async def job() -> tuple[list[str], LLM]:
        server = OpenAIBackend("tiny", provider.url)
        async with BatchLLM(server, ledger or Ledger(), limits, bounds) as llm:
            return [*await asyncio.gather(*(outcome(llm, i) for i in range(count)))], llm

    return asyncio.run(job())


RE = [f"re: question {index}" for index in range(50)]


def test_concurrent_calls_are_one_batch_and_answers_in_any_order_find_their_calls():
    with serve_batches() as provider:
        answers, llm = ask(provider, 50)
    assert answers == RE
    (lines,) = provider.lines
    assert [line["body"] for line in lines] == [
        {"model": "tiny", "messages": messages(index)} for index in range(50)
    ]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    (made,) = provider.batches.values()
    assert (made["endpoint"], made["completion_window"]) == ("/v1/chat/completions", "24h")
    assert (llm.usage.calls, llm.usage.prompt_tokens) == (50, 5000)


def test_the_name_of_a_call_is_its_key_in_the_ledger_and_sets_samples_apart():
    backend = BatchBackend(OpenAIBackend("tiny", "http://localhost:1/v1"), Submissions(None))
    calls = [Request("chat", messages(0), sample=index) for index in range(2)]
    names = [backend._name(call) for call in calls]
    assert names == [LLM(backend).key(call).hex() for call in calls]
    assert len({*names}) == 2


@pytest.mark.parametrize(
    "bounds", [Bounds(20, stall=0.05, poll=0.01), Bounds(50, 2500, stall=0.05, poll=0.01)]
)
def test_a_batch_is_bounded_in_calls_and_bytes(bounds: Bounds):
    """50 calls of about 160 bytes: three batches of at most 20 calls, four of at most 15."""
    with serve_batches() as provider:
        assert ask(provider, 50, bounds=bounds)[0] == RE
    for lines in provider.lines:
        assert len(lines) <= bounds.requests
        assert sum(len(json.dumps(line)) + 1 for line in lines) <= bounds.bytes
    assert len(provider.lines) == (3 if bounds.requests == 20 else 4)


def test_chats_and_completions_go_into_batches_of_their_own():
    def answer(line: Line) -> Line:
        made = answered(line, "ok")
        if line["url"] == "/v1/completions":
            made["response"]["body"]["choices"] = [{"text": "ok", "finish_reason": "stop"}]
        return made

    async def job(url: str) -> list[Reply]:
        server = OpenAIBackend("tiny", url)
        async with BatchLLM(server, Ledger(), Limits(), QUICK) as llm:
            return [*await asyncio.gather(llm.chat(messages(0)), llm.complete("once"))]

    with serve_batches(Provider(answer)) as provider:
        assert [reply.text for reply in asyncio.run(job(provider.url))] == ["ok", "ok"]
    assert sorted(made["endpoint"] for made in provider.batches.values()) == [
        *("/v1/chat/completions", "/v1/completions")
    ]


def test_errors_of_single_calls_are_typed_and_only_passing_ones_are_sent_again(tmp_path: Path):
    """Of 6 calls one is refused, one too long, one fails for good and one at first only."""
    seen: Counter[int] = Counter()

    def answer(line: Line) -> Line | None:
        index = number(line)
        seen[index] += 1
        error = {"error": {"message": "context is 8 tokens", "code": "too_long"}}
        choice = {"finish_reason": "content_filter", "message": {"content": "no"}}
        failures = {
            0: with_status(line, 200, {"choices": [choice]}),
            1: with_status(line, 400, error),
            2: with_status(line, 500, {"error": {"message": "oops"}}),
        }
        if index == 3 and seen[index] == 1:
            return with_status(line, 429, {"error": {"message": "busy"}})
        return failures.get(index) or echo(line)

    with serve_batches(Provider(answer)) as provider, Ledger(tmp_path / "a.ledger") as ledger:
        answers, _ = ask(provider, 6, ledger)
        outcomes = ledger.outcomes()
    assert [told.partition(":")[0] for told in answers] == [
        *("refused", "failed", "failed", "re", "re", "re")
    ]
    assert outcomes == {"answered": 3, "refused": 1, "failed": 2}
    assert seen == {0: 1, 1: 1, 2: 2, 3: 2, 4: 1, 5: 1}


def test_an_expired_batch_keeps_what_is_answered_and_a_rerun_asks_for_the_rest(tmp_path: Path):
    """Of 10 calls the last 4 expire; 2 of them are listed in no file at all."""

    def answer(line: Line) -> Line | None:
        if number(line) < 6 or provider.ends == ["completed"]:
            return echo(line)
        return unanswered(line) if number(line) < 8 else None

    with serve_batches(Provider(answer, ends=["expired"])) as provider:
        with Ledger(tmp_path / "a.ledger") as ledger:
            answers, llm = ask(provider, 10, ledger)
        assert answers[:6] == RE[:6]
        assert "failed: the batch gave no answer: batch_expired: not executed in time" in answers[6]
        assert answers[8] == (
            "failed: batch batch-0 ended as expired without an answer to this call"
        )
        assert llm.usage.failed == 4
        provider.ends = ["completed"]
        with Ledger(tmp_path / "a.ledger") as ledger:
            assert ask(provider, 10, ledger)[0] == RE[:10]
    assert [sorted(map(number, lines)) for lines in provider.lines] == [[*range(10)], [6, 7, 8, 9]]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_batch_that_the_provider_gives_up_is_told_for_each_call(end: str):
    errors = [{"code": "invalid", "message": "line 3 is too long", "line": 3}]
    script = Provider(lambda _: None, ends=[end], errors=errors)
    with serve_batches(script) as provider:
        answers, _ = ask(provider, 3)
    told = ": line 3 is too long" if end == "failed" else ""
    assert (
        answers
        == [f"failed: batch batch-0 ended as {end} without an answer to this call{told}"] * 3
    )
    assert len(provider.lines) == 1


def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "FULL_QUEUE_WAIT", 0.05)
    errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    with serve_batches(Provider(ends=["failed", "completed"], errors=errors)) as provider:
        assert ask(provider, 3)[0] == RE[:3]
    assert len(provider.lines) == 2


@pytest.mark.parametrize("what", ["POST /files", "GET /batches", "GET /files"])
@pytest.mark.parametrize("status", [500, 429])
def test_trouble_on_the_way_is_waited_out(what: str, status: int):
    with serve_batches(Provider(trouble={what: [status, status]})) as provider:
        assert ask(provider, 3)[0] == RE[:3]
    assert len(provider.lines) == 1


@pytest.mark.parametrize("trouble", [[500], [0]], ids=["not carried out", "carried out unseen"])
def test_a_batch_whose_creation_seemed_to_fail_is_looked_for_before_it_is_sent_again(
    trouble: list[int],
):
    with serve_batches(Provider(trouble={"POST /batches": trouble})) as provider:
        assert ask(provider, 3)[0] == RE[:3]
    assert len(provider.lines) == 1
    assert "GET /batches" in provider.requests


def test_prices_are_those_of_the_tokens_that_the_batch_used(tmp_path: Path):
    """10 calls of 100 prompt tokens at $1 and 10 completion tokens at $5 a million: $0.0015."""
    with serve_batches() as provider, Ledger(tmp_path / "a.ledger") as ledger:
        _, llm = ask(provider, 10, ledger, limits=Limits(price=(1.0, 5.0)))
        assert llm.usage.price == pytest.approx(0.0015)
        assert ledger.spent() == pytest.approx(0.0015)


def test_a_cap_on_money_is_checked_before_a_call_joins_a_batch(tmp_path: Path):
    """A call may cost at most what its prompt and 100 tokens at $1000 a million do: over $0.1."""

    async def job(url: str, ledger: Ledger) -> None:
        server = OpenAIBackend("tiny", url)
        limits = Limits(price=(1.0, 1000.0), max_cost=0.35)
        async with BatchLLM(server, ledger, limits, QUICK) as llm:
            calls = (llm.chat(messages(i), Sampling(max_tokens=100)) for i in range(50))
            await asyncio.gather(*calls)

    with serve_batches() as provider, Ledger(tmp_path / "a.ledger") as ledger:
        with pytest.raises(Stopped, match=r"`--max-cost 0\.35` is met"):
            asyncio.run(job(provider.url, ledger))
        assert ledger.spent() <= 0.35
    assert len(provider.lines[0]) == 3


def test_ending_early_waits_for_no_batch_and_the_next_run_collects_it(tmp_path: Path):
    async def interrupted(url: str, ledger: Ledger) -> None:
        async with BatchLLM(OpenAIBackend("tiny", url), ledger, Limits(), QUICK) as llm:
            calls = [asyncio.create_task(llm.chat(messages(i))) for i in range(5)]
            while not provider.looks:
                await asyncio.sleep(0.01)
            llm.stop(Stopped("interrupted", "go on"))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, Stopped) for result in results)

    with serve_batches(Provider(polls=10**9)) as provider:
        with Ledger(tmp_path / "a.ledger") as ledger:
            started = time.monotonic()
            asyncio.run(interrupted(provider.url, ledger))
            assert time.monotonic() - started < 5
        provider.polls = 0
        with Ledger(tmp_path / "a.ledger") as ledger:
            assert ask(provider, 5, ledger)[0] == RE[:5]
    assert len(provider.lines) == 1


def test_a_batch_that_never_arrived_is_submitted_by_the_next_run(tmp_path: Path):
    """A process that dies between its record and its request leaves a record without an id."""
    name = BatchBackend(OpenAIBackend("tiny", "http://127.0.0.1:1/v1"), Submissions(None))._name
    Ledger(tmp_path / "a.ledger").close()
    Submissions(tmp_path / "a.ledger").add("lost", [name(Request("chat", messages(0)))])
    with serve_batches() as provider, Ledger(tmp_path / "a.ledger") as ledger:
        assert ask(provider, 2, ledger)[0] == RE[:2]
    assert sum(map(len, provider.lines)) == 2


def test_a_batch_that_the_provider_has_forgotten_is_told_and_submitted_by_the_next_run(
    tmp_path: Path,
):
    name = BatchBackend(OpenAIBackend("tiny", "http://127.0.0.1:1/v1"), Submissions(None))._name
    Ledger(tmp_path / "a.ledger").close()
    submissions = Submissions(tmp_path / "a.ledger")
    submissions.add("old", [name(Request("chat", messages(0)))])
    submissions.name("old", "batch-99")
    with serve_batches() as provider:
        with Ledger(tmp_path / "a.ledger") as ledger:
            (told,), _ = ask(provider, 1, ledger)
        assert told.endswith("has batch batch-99 no more; run again to submit it anew")
        with Ledger(tmp_path / "a.ledger") as ledger:
            assert ask(provider, 1, ledger)[0] == RE[:1]


def test_a_broken_file_of_answers_is_typed_and_fetched_again_by_the_next_run(tmp_path: Path):
    with serve_batches(Provider(polls=0)) as provider:
        look = provider.look

        def breaking(name: str) -> Line | None:
            made = look(name)
            if made and made["output_file_id"]:
                provider.files[made["output_file_id"]] += b'{"custom_id": "x", "resp'
            return made

        provider.look = breaking  # type: ignore[method-assign]
        with Ledger(tmp_path / "a.ledger") as ledger:
            (told,), _ = ask(provider, 1, ledger, limits=Limits(attempts=1))
        assert told.startswith("unparseable: ")
        provider.look = look  # type: ignore[method-assign]
        output = provider.batches["batch-0"]["output_file_id"]
        provider.files[output] = provider.files[output].splitlines()[0]
        with Ledger(tmp_path / "a.ledger") as ledger:
            assert ask(provider, 1, ledger)[0] == RE[:1]
    assert len(provider.lines) == 1


@pytest.mark.parametrize("what", ["POST /files", "POST /batches"])
def test_a_server_without_batches_is_told(what: str):
    told = pytest.raises(UserError, match=r"offers no batches; leave out `--mode batch`")
    with serve_batches(Provider(trouble={what: [404]})) as provider, told:
        ask(provider, 1)


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
def test_an_address_of_something_else_is_told(content_type: str, monkeypatch: pytest.MonkeyPatch):
    script = Provider(content_type=content_type)
    monkeypatch.setattr(script, "upload", lambda _: b"<html>Welcome</html>")
    told = pytest.raises(UserError, match="does not answer as an API of batches")
    with serve_batches(script) as provider, told:
        ask(provider, 1)


def test_a_full_disk_ends_the_job_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise UserError("cannot keep batches in the ledger: database or disk is full")

    monkeypatch.setattr(Submissions, "add", full)
    with serve_batches() as provider, pytest.raises(UserError, match="disk is full"):
        ask(provider, 3)
    assert provider.requests == []


def test_a_damaged_ledger_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "a.ledger").write_text("no database " * 100)
    with pytest.raises(UserError, match=r"cannot keep batches in the ledger .*a\.ledger: file is"):
        Submissions(tmp_path / "a.ledger")


def test_an_address_where_nobody_is_and_a_refused_key_are_told_at_once():
    with pytest.raises(UserError, match=r"is the server running\?"):
        ask(Provider(url="http://127.0.0.1:9/v1"), 1)
    told = pytest.raises(UserError, match="refuses the API key")
    with serve_batches(Provider(trouble={"POST /files": [401]})) as provider, told:
        ask(provider, 1)


def generate(provider: Provider, folder: Path, *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alignment", "generate", "--mode", "batch"]
    command += ["--poll-interval", "0.05", "--model", "tiny", "--base-url", provider.url]
    command += ["--prompts", str(folder / "p.jsonl"), "--output", str(folder / "a.jsonl"), *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ.copy())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["after the upload", "after the creation", "while it runs"])
def test_killed_between_submitting_and_collecting_a_rerun_submits_nothing_twice(
    stage: str, tmp_path: Path
):
    """The provider kills the job at a stage of its own, so the moment is exact.

    At the two earlier stages its answer never leaves: the job dies without having read it.
    """
    rows = "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(30))
    (tmp_path / "p.jsonl").write_text(rows)
    with serve_batches(Provider(polls=3)) as provider:
        methods = {"after the upload": "upload", "after the creation": "create"}
        method = methods.get(stage, "look")
        carry_out = getattr(provider, method)

        def deadly(argument: Any) -> Any:
            made = carry_out(argument)
            job.send_signal(signal.SIGKILL)
            job.wait()
            return made

        setattr(provider, method, deadly)
        job = generate(provider, tmp_path)
        assert job.wait(60) == -signal.SIGKILL
        setattr(provider, method, carry_out)
        assert not (tmp_path / "a.jsonl").exists()
        job = generate(provider, tmp_path)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 0, errors
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["response"] for row in answers] == RE[:30]
    assert len(provider.lines) == 1


@pytest.mark.slow
def test_interrupted_while_a_batch_runs_the_command_ends_at_once(tmp_path: Path):
    rows = "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(5))
    (tmp_path / "p.jsonl").write_text(rows)
    with serve_batches(Provider(polls=10**9)) as provider:
        job = generate(provider, tmp_path)
        while not provider.looks:
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=20)
        assert job.returncode == 130, errors
        assert "submitted batch batch-0 with 5 calls" in errors
        provider.polls = 0
        job = generate(provider, tmp_path, "--resume")
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 0, errors
    assert len(provider.lines) == 1
