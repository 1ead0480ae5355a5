"""How hard a model is pressed: calls in flight, requests and tokens per minute, money."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from alignment.llm.ledger import Ledger
from alignment.llm.protocol import CallError, Reply, Request, Stopped

UNBOUNDED_ANSWER = 4096
"""Tokens that an answer without `max_tokens` is taken for before it is there."""
BYTES_PER_TOKEN = 3
"""Of a prompt. English has more, so that it is rather over- than underestimated."""
_POLL = 0.05


@dataclass(frozen=True)
class Limits:
    """How hard a model may be pressed. Nothing here changes an answer, so nothing is part of a key.

    Attributes:
        concurrency: Most calls in flight.
        attempts: Most requests sent for one call.
        backoff: Seconds before the second attempt; doubled for each further one.
        price: Dollars for a million prompt tokens and for a million completion tokens.
        requests_per_minute: Most requests sent in any minute, evenly spaced.
        tokens_per_minute: Most tokens in a minute, of prompts and answers together. An answer
            counts as its longest possible until it is there.
        max_cost: Most dollars that may stand in the ledger, those of earlier runs included. A
            request is sent only if its prompt and longest answer fit beside those in flight.
    """

    concurrency: int = 16
    attempts: int = 8
    backoff: float = 1.0
    price: tuple[float, float] | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_cost: float | None = None


class Tokens(NamedTuple):
    """What a call takes."""

    prompt: int
    completion: int

    def price(self, rates: tuple[float, float]) -> float:
        """Dollars, from dollars for a million of each."""
        return (self.prompt * rates[0] + self.completion * rates[1]) / 1e6


def estimate(request: Request) -> Tokens:
    """What a call may take, before it is made."""
    prompt = math.ceil(len(request.canonical()) / BYTES_PER_TOKEN)
    if request.verb in ("score", "reward"):
        return Tokens(prompt, 0)
    return Tokens(prompt, request.sampling.max_tokens or UNBOUNDED_ANSWER)


def taken(reply: Reply, estimated: Tokens) -> Tokens:
    """What a call took; where the server does not say, by the length of its texts."""
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    if completion is None:
        completion = math.ceil(len(reply.text.encode()) / BYTES_PER_TOKEN)
    return Tokens(estimated.prompt if prompt is None else prompt, completion)


class Slots:
    """Calls in flight: halved when the server says that they are too many, slowly raised again.

    Used as `async with slots:`; who comes first is served first.

    Args:
        most: Most of them.

    Attributes:
        allowed: How many there may be now.
        used: How many there are.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.allowed = float(most)
        self.used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._shrunk_at = -math.inf

    def shrink(self, sent_at: float) -> None:
        """Halves them, but once for all requests that were in flight together.

        Args:
            sent_at: When the request that was too many left, by the monotonic clock.
        """
        if sent_at > self._shrunk_at:
            self._shrunk_at = time.monotonic()
            self.allowed = max(1.0, min(self.allowed, self.used) / 2)

    def grow(self) -> None:
        """Adds a share for an answer: a 32nd of the most, or one, for each round of answers."""
        self.allowed = min(self.most, self.allowed + max(1.0, self.most / 32) / self.allowed)

    async def __aenter__(self) -> None:
        if not self._waiting and self.used < int(self.allowed):
            self.used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # granted while its caller gave up
                await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.used -= 1
        while self._waiting and self.used < int(self.allowed):
            turn = self._waiting.popleft()
            if not turn.done():
                self.used += 1
                turn.set_result(None)


class Rate:
    """A cap on what is taken in a minute: everything taken pushes the next taking back.

    Args:
        per_minute: The cap, None for none.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._free_at = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until something may be taken."""
        return self._free_at - now

    def take(self, amount: float, now: float) -> None:
        """Takes something, by the monotonic clock."""
        if self._seconds:
            self._free_at = max(now, self._free_at) + amount * self._seconds

    def give_back(self, amount: float) -> None:
        """Returns what was taken beyond need, or takes what was needed beyond it."""
        self._free_at -= amount * self._seconds


class Pacer:
    """Clears requests for sending, one after the other.

    Args:
        limits: The caps.
        ledger: Knows what was spent; money in flight is reserved there, for all models on it.

    Attributes:
        slots: Calls in flight.
    """

    def __init__(self, limits: Limits, ledger: Ledger) -> None:
        self.slots = Slots(limits.concurrency)
        self._limits = limits
        self._ledger = ledger
        self._requests = Rate(limits.requests_per_minute)
        self._tokens = Rate(limits.tokens_per_minute)
        self._held_until = -math.inf
        self._turn = asyncio.Lock()

    async def clear(self, tokens: Tokens) -> None:
        """Waits until a request may be sent, and takes its share of every cap.

        Raises:
            Stopped: It may cost more than is left, even if nothing else were in flight.
        """
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await asyncio.sleep(min(wait, _POLL))
            now = time.monotonic()
            self._requests.take(1, now)
            self._tokens.take(sum(tokens), now)
            if self._limits.max_cost is not None:
                self._ledger.reserved.take(self._price(tokens))

    def settle(self, tokens: Tokens, result: Reply | CallError | None, sent_at: float) -> None:
        """Books what came of a cleared request, after its price stands in the ledger.

        Args:
            tokens: What it was cleared for.
            result: What came back, None where the caller gave up.
            sent_at: When it left, by the monotonic clock.
        """
        if self._limits.max_cost is not None:
            self._ledger.reserved.give_back(self._price(tokens))
        if isinstance(result, Reply):
            self._tokens.give_back(sum(tokens) - sum(taken(result, tokens)))
            self.slots.grow()
        elif result is not None:
            self._tokens.give_back(tokens.completion)
            if result.outcome == "rate_limited":
                self.slots.shrink(sent_at)
            if result.retry_after:
                self._held_until = max(self._held_until, time.monotonic() + result.retry_after)

    def _wait(self, tokens: Tokens) -> float:
        """Seconds until a request may be sent, as far as can be seen now."""
        now = time.monotonic()
        waits = (self._held_until - now, self._requests.wait(now), self._tokens.wait(now))
        cap = self._limits.max_cost
        if cap is not None and max(waits) <= 0:
            spent, price = self._ledger.spent(), self._price(tokens)
            if spent + self._ledger.reserved.dollars + price > cap * (1 + 1e-9):
                if not self._ledger.reserved.calls:
                    raise Stopped(
                        f"`--max-cost {cap:g}` is met: ${spent:.4f} are spent and the next call "
                        f"may cost ${price:.4f}",
                        "raise it and pass `--resume` to go on",
                    )
                return _POLL  # those in flight may cost less than they might
        return max(waits)

    def _price(self, tokens: Tokens) -> float:
        return tokens.price(self._limits.price) if self._limits.price else 0.0
