"""Calls to a model: concurrent, retried, counted, and kept in a ledger."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from alignment.llm.calls import Caller, Usage, source_of
from alignment.llm.interrupts import interruptible
from alignment.llm.ledger import Ledger
from alignment.llm.pacing import Limits
from alignment.llm.protocol import (
    GO_ON,
    Backend,
    CallError,
    Message,
    Prompt,
    Reply,
    Request,
    Sampling,
    Stopped,
)

_TOLD = {"refused": "refused", "truncated": "was cut off at `max_tokens`"}


class LLM:
    """A model behind a backend, with a ledger between.

    Used as `async with LLM(...) as llm`: on leaving, calls in flight may end and are recorded. So
    they are at the first Ctrl-C, from which on only the ledger answers and `Stopped` is raised for
    all other calls.

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
        self.source = source_of(backend)
        self._prefix = hashlib.blake2b(json.dumps([*self.source.values()]).encode(), digest_size=16)
        self._caller = Caller(backend, self.ledger, self.limits, self.usage)
        self._running: dict[bytes, asyncio.Task[Reply]] = {}
        self._exit = ExitStack()

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
            Stopped: The call is not made because the job is to end.
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

    async def reward(self, messages: Sequence[Message]) -> float:
        """The reward of a conversation's last message; higher is better, and its unit the model's.

        Raises:
            CallError: The model could not be asked, or gave no finite number.
            UserError: No call can succeed before the user mends something.
        """
        reply = await self.ask(Request("reward", messages))
        try:
            reward = float(reply.text)
        except ValueError:
            reward = math.nan
        if not math.isfinite(reward):
            raise CallError("unparseable", f"{self.model} gave the reward `{reply.text[:100]}`")
        return reward

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
            reply = await self._made(key, request)
        if reply.outcome == "answered" or (reply.outcome == "truncated" and keep_truncated):
            return reply
        told = f": {reply.text[:200]}" if reply.outcome == "refused" and reply.text else ""
        raise CallError(reply.outcome, f"{self.model} {_TOLD[reply.outcome]}{told}")

    def key(self, request: Request) -> bytes:
        """The ledger's key of a call: a hash of all that changes its answer, of nothing else."""
        digest = self._prefix.copy()
        digest.update(request.canonical())
        return digest.digest()

    def stop(self, error: Stopped) -> None:
        """Sends nothing more; calls in flight may end, and the ledger still answers.

        Args:
            error: What every other call raises from now on.
        """
        self._caller.stopped = self._caller.stopped or error
        for task in self._running.values():
            if task not in self._caller.in_flight:
                task.cancel()

    async def __aenter__(self) -> LLM:
        stop = Stopped("interrupted", GO_ON, status=130)
        self._exit.enter_context(interruptible(lambda: self.stop(stop)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(Stopped(f"{self.model} is asked no more", GO_ON))
        if self._running:
            await asyncio.wait(self._running.values())
        self._exit.close()
        await self.backend.close()

    async def _made(self, key: bytes, request: Request) -> Reply:
        # Two rows may ask the same; and a caller that gives up leaves the call to end in peace.
        task = self._running.get(key)
        if task is None:
            if self._caller.stopped is not None:
                raise self._caller.stopped.with_traceback(None)
            task = asyncio.create_task(self._caller.make(key, request))
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        try:
            return await asyncio.shield(task)
        except Stopped as error:  # a cap is met, for every call
            self.stop(error)
            raise
        except asyncio.CancelledError:
            if task.cancelled() and self._caller.stopped is not None:
                raise self._caller.stopped.with_traceback(None) from None
            raise

    def _forget(self, key: bytes, task: asyncio.Task[Reply]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not complain when the caller is gone
