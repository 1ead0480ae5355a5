"""Nothing is asked twice, nothing is lost, and no failure is taken for an answer."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.pacing import Limits
from alignment.llm.program import FakeLLM, ProgramBackend
from alignment.llm.protocol import CallError, Outcome, Reply, Request, Sampling, Stopped

MESSAGES = [{"role": "user", "content": "hello"}]


def echo(request: Request) -> str:
    return f"answer to {request.prompt} {request.sample}"


def passing(retry_after: float | None = None) -> CallError:
    return CallError("failed", "busy", retry=True, retry_after=retry_after)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "calls.ledger")


async def outcome(llm: LLM, **options: Any) -> str:
    try:
        return (await llm.chat(MESSAGES, **options)).outcome
    except CallError as error:
        return error.outcome


def test_a_finished_call_is_answered_from_the_ledger(ledger: Ledger):
    first, second = FakeLLM(["one"], ledger), FakeLLM([], ledger)
    assert asyncio.run(first.chat(MESSAGES)) == asyncio.run(second.chat(MESSAGES)) == Reply("one")
    assert (second.requests, second.usage.reused, first.usage.calls) == ([], 1, 1)


@pytest.mark.parametrize("reason", ["failed", "rate_limited", "unparseable"])
def test_a_failure_is_recorded_and_asked_again(ledger: Ledger, reason: Outcome):
    failing = FakeLLM([CallError(reason, "no")], ledger)
    assert asyncio.run(outcome(failing)) == reason
    assert ledger.outcomes() == {reason: 1}
    later = FakeLLM(["yes"], ledger)
    assert asyncio.run(outcome(later)) == "answered"
    assert ledger.outcomes() == {"answered": 1}


@pytest.mark.parametrize(
    ("finish_reason", "expected"),
    [("length", "truncated"), ("content_filter", "refused"), ("refusal", "refused")],
)
def test_a_refusal_and_a_cut_answer_are_no_answers_and_are_not_asked_again(
    ledger: Ledger, finish_reason: str, expected: str
):
    first = FakeLLM([Reply("I", finish_reason)], ledger)
    assert asyncio.run(outcome(first)) == expected
    second = FakeLLM([], ledger)
    assert asyncio.run(outcome(second)) == expected
    assert second.requests == []


def test_a_cut_answer_is_returned_where_it_is_wanted(ledger: Ledger):
    llm = FakeLLM([Reply("A", "length")], ledger)
    assert asyncio.run(llm.chat(MESSAGES, keep_truncated=True)).text == "A"
    assert asyncio.run(outcome(llm)) == "truncated"


def test_a_passing_failure_is_asked_again_until_attempts_run_out():
    llm = FakeLLM([passing(), passing(), "at last"], limits=Limits(attempts=3, backoff=0))
    assert asyncio.run(llm.chat(MESSAGES)).text == "at last"
    assert (llm.usage.calls, llm.usage.requests) == (1, 3)
    llm = FakeLLM([passing()] * 3, limits=Limits(attempts=3, backoff=0))
    assert asyncio.run(outcome(llm)) == "failed"


def test_a_failure_that_cannot_pass_is_not_asked_again():
    llm = FakeLLM([CallError("failed", "too long"), "never"])
    assert asyncio.run(outcome(llm)) == "failed"
    assert len(llm.requests) == 1


def test_the_wait_is_at_least_what_the_server_asks_for():
    llm = FakeLLM([passing(retry_after=0.2), "ok"])
    started = time.monotonic()
    asyncio.run(llm.chat(MESSAGES))
    assert time.monotonic() - started >= 0.2


def test_a_server_never_met_is_an_error_of_the_user_and_one_met_before_a_failed_call():
    away = CallError("failed", "cannot reach it", retry=True, unreachable=True)
    with pytest.raises(UserError, match="cannot reach it"):
        asyncio.run(FakeLLM([away]).chat(MESSAGES))
    for first in ("hello", CallError("failed", "busy")):
        llm = FakeLLM([first, away, away], limits=Limits(attempts=2, backoff=0))

        async def twice(llm: FakeLLM = llm) -> list[str]:
            return [await outcome(llm, sample=1), await outcome(llm)]

        assert asyncio.run(twice())[1] == "failed"


def test_equal_calls_at_the_same_time_are_made_once():
    llm = FakeLLM(echo)

    async def both() -> list[Reply]:
        return [*await asyncio.gather(llm.chat(MESSAGES), llm.chat(MESSAGES))]

    assert asyncio.run(both()) == [Reply(echo(llm.requests[0]))] * 2
    assert len(llm.requests) == 1


def test_two_ledgers_on_one_file_ask_nothing_twice(tmp_path: Path):
    """As two processes would: each has a ledger of its own, and both ask the same 40 calls."""
    seen: list[int] = []

    class Slow(ProgramBackend):
        async def ask(self, request: Request) -> Reply:
            seen.append(request.sample)
            await asyncio.sleep(0.005)
            return Reply(str(request.sample))

    async def job(ledger: Ledger) -> list[str]:
        async with LLM(Slow(echo, "slow", "1"), ledger, Limits(concurrency=4)) as llm:
            calls = [llm.chat(MESSAGES, sample=index) for index in range(40)]
            return [reply.text for reply in await asyncio.gather(*calls)]

    async def both() -> list[list[str]]:
        path = tmp_path / "calls.ledger"
        return [*await asyncio.gather(job(Ledger(path)), job(Ledger(path)))]

    answers = asyncio.run(both())
    assert answers == [[str(index) for index in range(40)]] * 2
    assert sorted(seen) == list(range(40))


def test_no_more_calls_are_in_flight_than_allowed():
    most = current = 0

    class Counting(ProgramBackend):
        async def ask(self, request: Request) -> Reply:
            nonlocal most, current
            current += 1
            most = max(most, current)
            await asyncio.sleep(0.001)
            current -= 1
            return Reply("ok")

    llm = LLM(Counting(echo, "m", "1"), limits=Limits(concurrency=3))

    async def many() -> None:
        await asyncio.gather(*(llm.chat(MESSAGES, sample=index) for index in range(20)))

    asyncio.run(many())
    assert most == 3


def test_on_leaving_calls_in_flight_end_and_are_kept_and_waiting_ones_are_not_made(ledger: Ledger):
    class Slow(ProgramBackend):
        async def ask(self, request: Request) -> Reply:
            await asyncio.sleep(0.05)
            return Reply("paid for")

    async def leave_early() -> None:
        async with LLM(Slow(echo, "m", "1"), ledger, Limits(concurrency=2)) as llm:
            tasks = [asyncio.create_task(llm.chat(MESSAGES, sample=index)) for index in range(5)]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()

    asyncio.run(leave_early())
    assert ledger.outcomes() == {"answered": 2}


def test_a_reply_is_handed_on_only_when_it_is_on_record(tmp_path: Path):
    with Ledger(tmp_path / "calls.ledger") as ledger:
        llm = FakeLLM(echo, ledger)

        async def ask(sample: int) -> Reply | None:
            await llm.chat(MESSAGES, sample=sample)
            request = Request("chat", MESSAGES, sample=sample)
            with Ledger(tmp_path / "calls.ledger") as other:
                return other.get(llm.key(request))

        async def several() -> list[Reply | None]:
            return [*await asyncio.gather(*map(ask, range(8)))]

        assert all(asyncio.run(several()))


def test_calls_that_end_together_share_a_transaction(ledger: Ledger):
    """Eight calls: one transaction claims them, one records them."""
    statements: list[str] = []
    ledger._db.set_trace_callback(statements.append)
    llm = FakeLLM(echo, ledger)

    async def several() -> None:
        await asyncio.gather(*(llm.chat(MESSAGES, sample=index) for index in range(8)))

    asyncio.run(several())
    assert statements.count("BEGIN IMMEDIATE") == 2


def test_a_ledger_that_cannot_be_written_ends_the_job_in_one_line(ledger: Ledger):
    ledger._db.execute("PRAGMA max_page_count = 1")
    llm = FakeLLM(["x" * 100_000], ledger)
    with pytest.raises(UserError, match="database or disk is full; what it holds is whole"):
        asyncio.run(llm.chat(MESSAGES))


def test_a_stopped_model_answers_from_its_ledger_alone(ledger: Ledger):
    llm = FakeLLM(["one"], ledger)
    asyncio.run(llm.chat(MESSAGES))
    llm.stop(Stopped("enough", "go on"))
    assert asyncio.run(llm.chat(MESSAGES)).text == "one"
    with pytest.raises(Stopped, match="enough; go on"):
        asyncio.run(llm.chat(MESSAGES, sample=1))


def test_a_stop_lets_calls_in_flight_end_and_ends_all_waits(ledger: Ledger):
    """Sample 0 is being answered, 1 waits to be asked again, 2 for a slot."""
    answered = asyncio.Event()

    class Slow(ProgramBackend):
        async def ask(self, request: Request) -> Reply:
            if request.sample == 1:
                raise passing()
            await answered.wait()
            return Reply("paid for")

    async def job() -> list[Any]:
        async with LLM(Slow(echo, "m", "1"), ledger, Limits(1, backoff=60.0)) as llm:
            calls = [asyncio.create_task(llm.chat(MESSAGES, sample=index)) for index in (1, 0, 2)]
            await asyncio.sleep(0.02)
            llm.stop(Stopped("enough", "go on"))
            answered.set()
            return [*await asyncio.gather(*calls, return_exceptions=True)]

    waiting, in_flight, queued = asyncio.run(asyncio.wait_for(job(), 5))
    assert in_flight == Reply("paid for")
    assert (type(waiting), type(queued)) == (Stopped, Stopped)
    assert ledger.outcomes() == {"answered": 1}


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_its_server_gave_up_is_asked_for_again(reason: str):
    llm = FakeLLM([Reply("half an ans", reason), "whole"])
    assert asyncio.run(llm.chat(MESSAGES)).text == "whole"


CHANGES: dict[str, Callable[[], tuple[LLM, Request]]] = {
    "model": lambda: (FakeLLM(echo, model="other"), Request("chat", MESSAGES)),
    "fingerprint": lambda: (LLM(ProgramBackend(echo, "fake", "2")), Request("chat", MESSAGES)),
    "verb": lambda: (FakeLLM(echo), Request("complete", MESSAGES)),
    "prompt": lambda: (FakeLLM(echo), Request("chat", [{"role": "user", "content": "bye"}])),
    "sampling": lambda: (FakeLLM(echo), Request("chat", MESSAGES, sampling=Sampling(seed=0))),
    "sample": lambda: (FakeLLM(echo), Request("chat", MESSAGES, sample=1)),
    "continuations": lambda: (FakeLLM(echo), Request("chat", MESSAGES, ("a",))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_holds_what_changes_an_answer(change: str):
    llm, request = CHANGES[change]()
    assert llm.key(request) != FakeLLM(echo).key(Request("chat", MESSAGES))


def test_the_key_holds_nothing_else():
    pressed = FakeLLM(echo, limits=Limits(1, 1, 9.0, (1.0, 2.0)))
    same = [{"content": "hello", "role": "user"}]
    assert pressed.key(Request("chat", same)) == FakeLLM(echo).key(Request("chat", MESSAGES))


def test_the_seed_of_a_call_differs_between_prompts_and_samples():
    requests = [
        Request("complete", prompt, sampling=Sampling(seed=seed), sample=sample)
        for prompt in ("a", "b")
        for seed in (0, 1)
        for sample in (0, 1)
    ]
    draws = {request.draw() for request in requests}
    assert len(draws) == 8
    assert all(0 <= draw < 2**31 for draw in draws)


def test_price_is_tokens_times_rates_and_is_kept(ledger: Ledger):
    """2,000 prompt tokens at $0.50 a million and 100 completion tokens at $10: $0.001 each."""
    answers = [Reply("ok", "stop", 2000, 100)]
    llm = FakeLLM(answers, ledger, Limits(price=(0.5, 10.0)))
    asyncio.run(llm.chat(MESSAGES))
    assert llm.usage.price == pytest.approx(0.002, rel=1e-12)
    (kept,) = ledger._db.execute("SELECT price FROM calls").fetchone()
    assert kept == llm.usage.price


def test_a_verb_that_the_backend_lacks_is_named():
    llm = LLM(ProgramBackend(echo, "m", "1", ("chat",)))
    with pytest.raises(UserError, match="program offers chat, not `score`"):
        asyncio.run(llm.score("a", ["b"]))


@pytest.mark.parametrize(("answer", "kind"), [(7, "int"), (None, "NoneType")])
def test_a_program_that_returns_no_text_is_named(answer: Any, kind: str):
    llm = LLM(ProgramBackend(lambda _: answer, "program:m.f", "1"))
    with pytest.raises(UserError, match=rf"`program:m\.f` returned {kind}; .*returns text"):
        asyncio.run(llm.chat(MESSAGES))


def test_scores_and_top_logprobs_come_back_from_the_ledger_as_they_were(ledger: Ledger):
    scored = Reply(logps=((-0.5, -1.25), (-3.0,)))
    asyncio.run(FakeLLM([scored], ledger).score("p", ["a", "b"]))
    assert asyncio.run(FakeLLM([], ledger).score("p", ["a", "b"])) == scored.logps
    topped = Reply("A", top_logprobs=({"A": -0.1, "B": -2.5},))
    asyncio.run(FakeLLM([topped], ledger).chat(MESSAGES))
    assert asyncio.run(FakeLLM([], ledger).chat(MESSAGES)) == topped


def test_half_a_surrogate_pair_does_not_stop_a_job(ledger: Ledger):
    llm = FakeLLM(["a\ud83db", "\ud83d\ude00"], ledger)
    assert asyncio.run(llm.chat(MESSAGES)).text == "a\ufffdb"
    assert asyncio.run(llm.chat(MESSAGES, sample=1)).text == "\U0001f600"
