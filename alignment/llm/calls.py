"""One call: claimed, sent until it is answered or given up, and recorded."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace
from typing import Any

from alignment.cli import UserError
from alignment.llm.commits import Commits
from alignment.llm.ledger import Call, Entry, Ledger
from alignment.llm.pacing import Limits, Pacer, Tokens, estimate, taken
from alignment.llm.protocol import Backend, CallError, Reply, Request, Stopped

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds; longer only where the server asks for it."""
_POLL = 0.1
"""Seconds between two looks at a call that another process is making."""


@dataclass
class Usage:
    """What this run took; what earlier runs took stands in the ledger.

    Attributes:
        calls: Calls made.
        reused: Calls that the ledger answered.
        failed: Calls that ended without a reply.
        requests: Requests sent, retries included.
        prompt_tokens: Tokens read, as far as servers tell.
        completion_tokens: Tokens written, as far as servers tell.
        price: Dollars, as far as prices are known.
    """

    calls: int = 0
    reused: int = 0
    failed: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price: float = 0.0

    def __str__(self) -> str:
        """`12 calls made, 88 from the ledger, 3400 tokens, $0.01`."""
        tokens = self.prompt_tokens + self.completion_tokens
        told = f"{self.calls} calls made, {self.reused} from the ledger, {tokens} tokens"
        return f"{told}, ${self.price:.2f}" if self.price else told


def source_of(backend: Backend) -> dict[str, str]:
    """Who answers: `provider`, `model` and `fingerprint`."""
    return {
        "provider": backend.provider,
        "model": backend.model,
        "fingerprint": backend.fingerprint,
    }


@dataclass
class _Work:
    """A call on its way."""

    key: bytes
    request: Request
    tokens: Tokens
    claimed: bool = False
    attempts: int = 0


class Caller:
    """Makes calls, each once among all processes on the ledger, and counts them.

    Args:
        backend: The way to the model.
        ledger: Where finished calls are kept.
        limits: How hard the model may be pressed.
        usage: Where calls are counted.

    Attributes:
        in_flight: Tasks whose request is sent and not yet recorded.
        stopped: Once it is set, nothing is sent any more, and it is raised instead.
    """

    def __init__(self, backend: Backend, ledger: Ledger, limits: Limits, usage: Usage) -> None:
        self.in_flight: set[asyncio.Task[Any] | None] = set()
        self.stopped: Stopped | None = None
        self._backend = backend
        self._ledger = ledger
        self._limits = limits
        self._usage = usage
        self._pacer = Pacer(limits, ledger)
        self._commits = Commits(ledger)
        self._reached = False

    async def make(self, key: bytes, request: Request) -> Reply:
        """Makes a call and returns its reply once that is on record.

        Args:
            key: The call's key.
            request: What to ask.

        Raises:
            CallError: There is no reply: it cannot be, or attempts ran out.
            UserError: No call can succeed before the user mends something.
            Stopped: The call was not made because the job is to end.
        """
        backend = self._backend
        if request.verb not in backend.verbs:
            offered = ", ".join(sorted(backend.verbs))
            raise UserError(f"{backend.provider} offers {offered}, not `{request.verb}`")
        work = _Work(key, request, estimate(request))
        try:
            while True:
                async with self._pacer.slots:
                    result = await self._step(work)
                if isinstance(result, Reply):
                    return result
                await asyncio.sleep(result)
        finally:
            if work.claimed:
                self._ledger.release(key)

    async def _step(self, work: _Work) -> Reply | float:
        """The reply, or the seconds until the next step."""
        if not work.claimed:
            work.claimed = await self._commits.claim(work.key)
            if not work.claimed:
                return _POLL
            # Another process may have finished the call before the claim was ours.
            if (reply := self._ledger.get(work.key)) is not None:
                self._usage.reused += 1
                return reply
        await self._pacer.clear(work.tokens)
        result = await self._attempt(work)
        return result if isinstance(result, Reply) else self._backoff(result, work)

    async def _attempt(self, work: _Work) -> Reply | CallError:
        """Sends a request, and records what comes of it unless it cost nothing and is sent again.

        Servers bill answers that cannot be used, too; the ledger adds them up.
        """
        task, result = asyncio.current_task(), None
        self.in_flight.add(task)
        work.attempts += 1
        self._usage.requests += 1
        started = time.monotonic()
        try:
            result = await self._send(work.request)
            latency = time.monotonic() - started
            price = self._booked(result, work)
            if isinstance(result, Reply) or self._is_last(result, work):
                self._usage.calls += 1
                self._usage.failed += isinstance(result, CallError)
            elif not price:
                return result
            call = Call(result, price, latency, work.attempts)
            source = {**source_of(self._backend), "verb": work.request.verb}
            await self._commits.put(Entry(work.key, source, call))
            work.claimed = False
        finally:
            self.in_flight.discard(task)
            self._pacer.settle(work.tokens, result, started)
        return result

    def _is_last(self, error: CallError, work: _Work) -> bool:
        return not error.retry or work.attempts >= self._limits.attempts

    def _backoff(self, error: CallError, work: _Work) -> float:
        """Seconds until a request that failed is sent again; raises where it is not."""
        if self._is_last(error, work):
            raise error
        if self.stopped is not None:
            raise self.stopped.with_traceback(None)
        wait = min(self._limits.backoff * 2.0 ** (work.attempts - 1), LONGEST_WAIT)
        wait = max(wait * random.uniform(0.75, 1.25), error.retry_after or 0.0)
        level = logging.WARNING if wait > 2 * LONGEST_WAIT else logging.INFO
        logger.log(level, "%s: %s; asking again in %.1f s", self._backend.model, error, wait)
        return wait

    async def _send(self, request: Request) -> Reply | CallError:
        try:
            reply = await self._backend.ask(request)
        except CallError as error:
            if error.unreachable and not self._reached:
                raise UserError(str(error)) from None
            self._reached = self._reached or not error.unreachable
            return error
        self._reached = True
        if reply.outcome == "failed":
            told = f"{self._backend.model} gave up half way ({reply.finish_reason})"
            failure = CallError("failed", told, retry=True)
            failure.prompt_tokens = reply.prompt_tokens
            failure.completion_tokens = reply.completion_tokens
            return failure
        # Lone surrogates fit neither SQLite nor UTF-8.
        text = reply.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return replace(reply, text=text)

    def _booked(self, result: Reply | CallError, work: _Work) -> float | None:
        """Counts what an attempt took, whatever came of it; its price, None where none is known."""
        took = Tokens(result.prompt_tokens or 0, result.completion_tokens or 0)
        self._usage.prompt_tokens += took.prompt
        self._usage.completion_tokens += took.completion
        if self._limits.price is None:
            return None
        if isinstance(result, Reply):
            took = taken(result, work.tokens)
        price = took.price(self._limits.price)
        self._usage.price += price
        return price
