"""Calls to a model: concurrent, retried, counted, and kept in a ledger."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from alignment.cli import UserError
from alignment.llm.ledger import Call, Ledger
from alignment.llm.protocol import Backend, CallError, Message, Prompt, Reply, Request, Sampling

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds; longer only where the server asks for it."""
_TOLD = {"refused": "refused", "truncated": "was cut off at `max_tokens`"}
_POLL = 0.1
"""Seconds between two looks at a call that another process is making."""


@dataclass(frozen=True)
class Limits:
    """How hard a model may be pressed. Nothing here changes an answer, so nothing is part of a key.

    Attributes:
        concurrency: Most calls in flight.
        attempts: Most requests sent for one call.
        backoff: Seconds before the second attempt; doubled for each further one.
        price: Dollars for a million prompt tokens and for a million completion tokens.
    """

    concurrency: int = 16
    attempts: int = 8
    backoff: float = 1.0
    price: tuple[float, float] | None = None


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


class LLM:
    """A model behind a backend, with a ledger between.

    Used as `async with LLM(...) as llm`: on leaving, calls in flight may end and are recorded.

    Args:
        backend: The way to the model.
        ledger: Where finished calls are kept; in memory by default.
        limits: How hard the model may be pressed.

    Attributes:
        source: `provider`, `model` and `fingerprint`: what to record beside what it says.
        usage: What this run took.
    """

    def __init__(
        self, backend: Backend, ledger: Ledger | None = None, limits: Limits | None = None
    ) -> None:
        self.backend = backend
        self.ledger = ledger or Ledger()
        self.limits = limits or Limits()
        self.usage = Usage()
        self.source = {
            "provider": backend.provider,
            "model": backend.model,
            "fingerprint": backend.fingerprint,
        }
        self._prefix = hashlib.blake2b(json.dumps([*self.source.values()]).encode(), digest_size=16)
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        self._running: dict[bytes, asyncio.Task[Reply]] = {}
        self._in_flight: set[asyncio.Task[Any] | None] = set()
        self._reached = False
        self._closing = False

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.backend.model

    async def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        sample: int = 0,
        keep_truncated: bool = False,
    ) -> Reply:
        """The assistant's next turn.

        Args:
            messages: The conversation so far.
            sampling: How the answer is drawn.
            sample: Which of several answers to the same messages this is.
            keep_truncated: Whether an answer cut at `max_tokens` is returned rather than raised.

        Raises:
            CallError: The model refused, was cut off, or could not be asked.
            UserError: No call can succeed before the user mends something.
        """
        request = Request("chat", messages, (), sampling or Sampling(), sample)
        return await self.ask(request, keep_truncated=keep_truncated)

    async def complete(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        sample: int = 0,
        keep_truncated: bool = False,
    ) -> Reply:
        """The text that follows `prompt`, without a chat template; otherwise as `chat`."""
        request = Request("complete", prompt, (), sampling or Sampling(), sample)
        return await self.ask(request, keep_truncated=keep_truncated)

    async def score(
        self, prompt: Prompt, continuations: Sequence[str]
    ) -> tuple[tuple[float, ...], ...]:
        """The log-probs of given texts after a prompt.

        Args:
            prompt: Text, or messages where the backend knows the model's chat template.
            continuations: The texts to score, none empty.

        Returns:
            For each continuation the log-prob of each of its tokens, nats.

        Raises:
            CallError: The texts could not be scored.
            UserError: No call can succeed before the user mends something.
        """
        reply = await self.ask(Request("score", prompt, tuple(continuations)))
        if reply.logps is None:
            raise CallError("unparseable", f"{self.model} returned no log-probs")
        return reply.logps

    async def ask(self, request: Request, *, keep_truncated: bool = False) -> Reply:
        """Any of the calls above, from the ledger where it was made before.

        Raises:
            CallError: As for `chat`.
            UserError: As for `chat`.
        """
        key = self.key(request)
        reply = self.ledger.get(key)
        if reply is not None:
            self.usage.reused += 1
        else:
            # Two rows may ask the same; and a caller that gives up leaves the call to end in peace.
            task = self._running.get(key)
            if task is None:
                task = asyncio.create_task(self._make(key, request))
                self._running[key] = task
                task.add_done_callback(lambda done: self._forget(key, done))
            reply = await asyncio.shield(task)
        if reply.outcome == "answered" or (reply.outcome == "truncated" and keep_truncated):
            return reply
        told = f": {reply.text[:200]}" if reply.outcome == "refused" and reply.text else ""
        raise CallError(reply.outcome, f"{self.model} {_TOLD[reply.outcome]}{told}")

    def key(self, request: Request) -> bytes:
        """The ledger's key of a call: a hash of all that changes its answer, of nothing else."""
        digest = self._prefix.copy()
        digest.update(request.canonical())
        return digest.digest()

    async def __aenter__(self) -> LLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        for task in self._running.values():
            if task not in self._in_flight:
                task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())
        await self.backend.close()

    def _forget(self, key: bytes, task: asyncio.Task[Reply]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not complain when the caller is gone

    async def _make(self, key: bytes, request: Request) -> Reply:
        if request.verb not in self.backend.verbs:
            offered = ", ".join(sorted(self.backend.verbs))
            raise UserError(f"{self.backend.provider} offers {offered}, not `{request.verb}`")
        async with self._slots:
            while not self.ledger.claim(key):
                await asyncio.sleep(_POLL)
            try:
                # Another process may have finished the call before the claim was ours.
                if (reply := self.ledger.get(key)) is not None:
                    self.ledger.release(key)
                    self.usage.reused += 1
                    return reply
                call = await self._attempt(request)
                self.ledger.put(key, {**self.source, "verb": request.verb}, call)
            except BaseException:
                self.ledger.release(key)
                raise
        if isinstance(call.result, CallError):
            raise call.result
        return call.result

    async def _attempt(self, request: Request) -> Call:
        """Sends a request until it is answered, or refused for good, or attempts run out."""
        for attempt in range(1, self.limits.attempts + 1):
            started = time.monotonic()
            self.usage.requests += 1
            result = await self._send(request)
            latency = time.monotonic() - started
            if isinstance(result, Reply) or not result.retry or attempt == self.limits.attempts:
                break
            if self._closing:
                raise asyncio.CancelledError
            wait = min(self.limits.backoff * 2 ** (attempt - 1), LONGEST_WAIT)
            wait = max(wait * random.uniform(0.5, 1.0), result.retry_after or 0.0)
            logger.info("%s: %s; asking again in %.1f s", self.model, result, wait)
            await asyncio.sleep(wait)
        return self._counted(result, latency, attempt)

    async def _send(self, request: Request) -> Reply | CallError:
        task = asyncio.current_task()
        self._in_flight.add(task)
        try:
            reply = await self.backend.ask(request)
        except CallError as error:
            if error.unreachable and not self._reached:
                raise UserError(str(error)) from None
            self._reached = self._reached or not error.unreachable
            return error
        finally:
            self._in_flight.discard(task)
        self._reached = True
        # Lone surrogates fit neither SQLite nor UTF-8.
        text = reply.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return replace(reply, text=text)

    def _counted(self, result: Reply | CallError, latency: float, attempts: int) -> Call:
        usage, price = self.usage, None
        usage.calls += 1
        if isinstance(result, CallError):
            usage.failed += 1
        else:
            tokens = (result.prompt_tokens or 0, result.completion_tokens or 0)
            usage.prompt_tokens += tokens[0]
            usage.completion_tokens += tokens[1]
            if self.limits.price is not None:
                rates = zip(tokens, self.limits.price, strict=True)
                price = sum(count * rate for count, rate in rates) / 1e6
                usage.price += price
        return Call(result, price, latency, attempts)
