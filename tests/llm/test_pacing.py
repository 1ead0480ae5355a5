"""Requests, tokens, money and calls in flight stay below their caps, and waits hold for all."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger, Reserve
from alignment.llm.options import CallOptions
from alignment.llm.pacing import Limits, Rate, Slots, Tokens, estimate, taken
from alignment.llm.program import ProgramBackend
from alignment.llm.protocol import CallError, Reply, Request, Sampling, Stopped


class Served(ProgramBackend):
    """A program that takes its time and notes when each request came."""

    def __init__(self, answer: Callable[[int], Reply | CallError], delay: float = 0.0) -> None:
        super().__init__(lambda request: "", "served", "1")
        self.answer = answer
        self.delay = delay
        self.at: list[float] = []
        self.in_flight = self.most = 0

    async def ask(self, request: Request) -> Reply:
        number = len(self.at)
        self.at.append(time.monotonic())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(self.delay)
        self.in_flight -= 1
        answer = self.answer(number)
        if isinstance(answer, CallError):
            raise answer
        return answer


def ask(llm: LLM, calls: int, **sampling: Any) -> list[Any]:
    """Several calls at once; errors stand in the place of replies."""

    async def run() -> list[Any]:
        async with llm:
            several = (
                llm.complete("hello", Sampling(**sampling), sample=index) for index in range(calls)
            )
            return [*await asyncio.gather(*several, return_exceptions=True)]

    return asyncio.run(run())


def fine(number: int) -> Reply:
    return Reply("fine", "stop", 10, 10)


def test_requests_are_spaced_by_the_cap_on_them():
    """1,200 a minute are one in 50 ms: the fifth leaves 200 ms after the first."""
    served = Served(fine)
    ask(LLM(served, limits=Limits(requests_per_minute=1200)), 5)
    assert served.at[4] - served.at[0] >= 0.19
    assert max(b - a for a, b in zip(served.at, served.at[1:], strict=False)) < 0.15


def test_tokens_count_as_the_longest_answer_until_the_answer_is_there():
    """12,000 tokens a minute are 200 a second. A call reserves about 40 + 60, half a second, and
    takes 20, a tenth: the third leaves 0.2 s after the first rather than 1 s.
    """
    served = Served(fine)
    ask(LLM(served, limits=Limits(tokens_per_minute=12_000)), 3, max_tokens=60)
    assert 0.19 <= served.at[2] - served.at[0] < 0.7


def test_a_failure_gives_the_tokens_of_its_answer_back():
    """At 200 tokens a second, 2,000 for an answer would hold the second attempt for ten seconds."""
    busy = CallError("failed", "busy", retry=True)
    served = Served(lambda number: busy if number == 0 else fine(number))
    limits = Limits(tokens_per_minute=12_000, backoff=0.0)
    ask(LLM(served, limits=limits), 1, max_tokens=2000)
    assert served.at[1] - served.at[0] < 1.0


def test_a_rate_gives_no_credit_for_time_unused():
    rate = Rate(60)
    rate.take(1, now=0.0)
    assert rate.wait(0.4) == pytest.approx(0.6)
    rate.take(1, now=100.0)
    assert rate.wait(100.0) == pytest.approx(1.0)
    rate.give_back(0.5)
    assert rate.wait(100.0) == pytest.approx(0.5)
    assert Rate(None).wait(0.0) < 0


def test_calls_in_flight_are_halved_once_for_all_refused_together_and_grow_by_answers():
    slots = Slots(16)
    slots.used = 16
    sent = time.monotonic()
    slots.shrink(sent)
    slots.shrink(sent)
    assert slots.allowed == 8
    slots.shrink(time.monotonic() + 1)
    assert slots.allowed == 4
    for _ in range(4):
        slots.grow()
    assert 4.8 < slots.allowed <= 5  # one more after a round of four
    for _ in range(1000):
        slots.grow()
    assert slots.allowed == 16


def test_a_slot_given_to_a_caller_that_gives_up_at_once_is_not_lost():
    async def run() -> int:
        slots = Slots(1)

        async def hold() -> None:
            async with slots:
                await asyncio.sleep(0)

        await slots.__aenter__()
        waiting = asyncio.create_task(hold())
        await asyncio.sleep(0)
        await slots.__aexit__()
        waiting.cancel()
        await asyncio.wait([waiting])
        async with asyncio.timeout(1), slots:
            return slots.used

    assert asyncio.run(run()) == 1


def test_a_server_that_takes_four_at_once_is_soon_asked_by_no_more():
    """It refuses the fifth; all 64 calls end as answers, though 32 may be in flight."""
    served = Served(fine, delay=0.01)

    def answer(number: int) -> Reply | CallError:
        busy = CallError("rate_limited", "busy", retry=True)
        return busy if served.in_flight >= 4 else fine(number)

    served.answer = answer
    llm = LLM(served, limits=Limits(concurrency=32, attempts=12, backoff=0.01))
    assert {type(reply) for reply in ask(llm, 64)} == {Reply}
    assert llm._caller._pacer.slots.allowed < 16


def test_retry_after_holds_every_caller():
    """The first request is told to come back in 0.3 s; nobody else asks meanwhile."""
    wait = CallError("rate_limited", "busy", retry=True, retry_after=0.3)
    served = Served(lambda number: wait if number == 0 else fine(number))
    ask(LLM(served, limits=Limits(concurrency=1, backoff=0.0)), 3)
    assert len(served.at) == 4
    assert served.at[1] - served.at[0] >= 0.3


PRICE = (0.0, 10_000.0)
"""A cent for each completion token."""


def test_a_call_is_not_sent_if_its_longest_answer_may_break_the_cap():
    """Each call may cost 20 cents and costs 10. Of a dollar, nine are spent for 90 cents; then
    20 more would be too many.
    """
    served = Served(fine)
    llm = LLM(served, limits=Limits(price=PRICE, max_cost=1.0, concurrency=1))
    replies = ask(llm, 20, max_tokens=20)
    assert (len(served.at), llm.usage.price) == (9, pytest.approx(0.9))
    errors = [reply for reply in replies if not isinstance(reply, Reply)]
    assert {type(error) for error in errors} == {Stopped}
    assert str(errors[0]) == (
        "`--max-cost 1` is met: $0.9000 are spent and the next call may cost $0.2000; "
        "raise it and pass `--resume` to go on"
    )


def test_calls_in_flight_reserve_what_they_may_cost():
    """Five at 20 cents fill a dollar; the sixth waits for their answers at 10 cents each."""
    served = Served(fine, delay=0.05)
    llm = LLM(served, limits=Limits(price=PRICE, max_cost=1.0, concurrency=16))
    ask(llm, 20, max_tokens=20)
    assert served.most == 5
    assert (len(served.at), llm.ledger.reserved) == (9, Reserve())
    assert llm.ledger.spent() <= 1.0


def test_what_earlier_runs_spent_counts(tmp_path: Any):
    limits = Limits(price=PRICE, max_cost=0.5, concurrency=1)
    for _ in range(2):
        with Ledger(tmp_path / "a.ledger") as ledger:
            served = Served(fine)
            replies = ask(LLM(served, ledger, limits), 10, max_tokens=20)
    assert (len(served.at), sum(isinstance(reply, Reply) for reply in replies)) == (0, 4)
    with Ledger(tmp_path / "a.ledger") as ledger:
        raised = Limits(price=PRICE, max_cost=5.0)
        replies = ask(LLM(Served(fine), ledger, raised), 10, max_tokens=20)
    assert {type(reply) for reply in replies} == {Reply}


def useless(number: int) -> CallError:
    error = CallError("unparseable", "the answer has no text", retry=number % 2 == 0)
    error.prompt_tokens, error.completion_tokens = 10, 10
    return error


def test_answers_that_cannot_be_used_are_paid_for_as_well(tmp_path: Any):
    """Each call is sent twice for 10 cents; after two calls a third may break the cap."""
    limits = Limits(price=PRICE, max_cost=0.5, concurrency=1, backoff=0.0)
    with Ledger(tmp_path / "a.ledger") as ledger:
        llm = LLM(Served(useless), ledger, limits)
        ask(llm, 10, max_tokens=20)
        assert (llm.usage.calls, llm.usage.failed, llm.usage.completion_tokens) == (2, 2, 40)
        assert llm.usage.price == pytest.approx(ledger.spent()) == pytest.approx(0.4)
    with Ledger(tmp_path / "a.ledger") as ledger:  # both are asked again, and answered
        llm = LLM(Served(fine), ledger, Limits(price=PRICE, max_cost=5.0))
        ask(llm, 2, max_tokens=20)
        assert ledger.spent() == pytest.approx(0.6)
        assert ledger.totals().dollars == pytest.approx(0.6)
        again = Ledger(tmp_path / "b.ledger")
        for _ in range(2):  # what is joined twice is counted once
            again.absorb(tmp_path / "a.ledger")
        assert again.totals() == ledger.totals()


def test_two_models_on_one_ledger_share_its_money():
    ledger, limits = Ledger(), Limits(price=PRICE, max_cost=1.0)
    ask(LLM(Served(fine), ledger, limits), 5, max_tokens=20)
    other = Served(fine)
    other.model = "other"
    ask(LLM(other, ledger, limits), 10, max_tokens=20)
    assert ledger.spent() == pytest.approx(0.9)


def test_what_a_server_does_not_count_is_counted_by_length():
    request = Request("complete", "x" * 300, sampling=Sampling(max_tokens=7))
    estimated = estimate(request)
    assert 100 <= estimated.prompt < 150
    assert estimated.completion == 7
    assert taken(Reply("y" * 30), estimated) == Tokens(estimated.prompt, 10)
    assert taken(Reply("y", "stop", 5, 6), estimated) == Tokens(5, 6)
    assert estimate(Request("score", "a", ("b",))).completion == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-cost", "5"], "`max_cost` needs `price`"),
        (["--max-cost", "0", "--price", "1", "2"], "`max_cost` is 0.0; it must be above 0"),
        (["--requests-per-minute", "-1"], "`requests_per_minute` is -1.0; it must be above 0"),
    ],
)
def test_caps_that_make_no_sense_are_refused(words: list[str], message: str):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse(CallOptions, words, "alignment generate")
