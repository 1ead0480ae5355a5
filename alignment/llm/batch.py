"""Batch APIs in OpenAI's format: calls are uploaded as a file and answered within a day.

A batch is on record before it is sent and known by its id before it is waited for, so a run that
was killed finds it again: the same command collects its answers and submits nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import openai

from alignment.cli import UserError
from alignment.llm.batch_api import BatchAPI
from alignment.llm.calls import source_of
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.openai import OpenAIBackend
from alignment.llm.pacing import Limits
from alignment.llm.protocol import CallError, Reply, Request, Stopped, Verb
from alignment.llm.redaction import redact
from alignment.llm.submissions import Submission, Submissions

logger = logging.getLogger(__name__)

MOST_BYTES = 100_000_000
"""Of a batch's file: what the strictest of providers take."""
FULL_QUEUE_WAIT = 600.0
"""Seconds before a batch is submitted again that found the provider's queue full."""


@dataclass(frozen=True)
class Bounds:
    """When calls become a batch.

    Attributes:
        requests: Most calls in one.
        bytes: Most bytes in its file.
        stall: Seconds without a new call after which those gathered are submitted.
        poll: Seconds between two looks at a batch.
    """

    requests: int = 10_000
    bytes: int = MOST_BYTES
    stall: float = 1.0
    poll: float = 60.0


class _Asked(NamedTuple):
    """A call that somebody waits for."""

    call: str
    request: Request
    path: str
    line: bytes
    answer: asyncio.Future[Reply]


@dataclass
class _Group:
    """Calls that are to become a batch."""

    asked: list[_Asked] = field(default_factory=list)
    bytes: int = 0


class BatchBackend:
    """A model behind a batch API.

    Args:
        server: The provider's API.
        submissions: What was submitted, by this run and by earlier ones.
        bounds: When calls become a batch.
    """

    verbs: frozenset[Verb] = frozenset({"chat", "complete"})

    def __init__(
        self, server: OpenAIBackend, submissions: Submissions, bounds: Bounds | None = None
    ) -> None:
        self.provider = server.provider
        self.model = server.model
        self.fingerprint = server.fingerprint
        self.url = server.url
        self._server = server
        self._submissions = submissions
        self._bounds = bounds or Bounds()
        self._api = BatchAPI(server, self._bounds.poll)
        self._gathered: dict[str, _Group] = defaultdict(_Group)  # by path
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: dict[str, dict[str, _Asked]] = defaultdict(dict)  # by label and call
        self._collected: dict[str, Any] = {}  # lines that nobody has asked for yet
        self._batches: dict[str, asyncio.Task[None]] = {}  # by label
        self._sending: set[asyncio.Task[str]] = set()

    async def ask(self, request: Request) -> Reply:
        """Waits for the reply from the batch that holds the request, or is to hold it."""
        call = self._name(request)
        path, body = self._server.body(request)
        line = {"custom_id": call, "method": "POST", "url": f"/v1{path}", "body": body}
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        asked = _Asked(call, request, path, json.dumps(line).encode() + b"\n", future)
        if call in self._collected:
            await self._answer([asked])
        elif (submission := self._submissions.of(call)) is not None:
            self._waiting[submission.label][call] = asked
            self._follow(submission)
        else:
            self._gather(asked)
        return await future

    def stop(self, error: Exception) -> None:
        """Has everyone who waits raise an error; submitted batches go on at the provider."""
        self._api.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._batches.values():
            task.cancel()
        for group in self._gathered.values():
            _fail(group.asked, error)
        for waiting in self._waiting.values():
            _fail(waiting.values(), error)
        self._gathered.clear()
        self._waiting.clear()

    async def close(self) -> None:
        """Closes the connections, after batches on their way to the provider have arrived."""
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._server.close()
        self._submissions.close()

    def _name(self, request: Request) -> str:
        """The same for the same call in every run: the ledger's key."""
        source = json.dumps([*source_of(self).values()]).encode()
        return hashlib.blake2b(source + request.canonical(), digest_size=16).hexdigest()

    def _gather(self, asked: _Asked) -> None:
        bounds, size = self._bounds, len(asked.line)
        if self._gathered[asked.path].bytes + size > bounds.bytes:
            self._submit(asked.path)
        group = self._gathered[asked.path]
        group.asked.append(asked)
        group.bytes += size
        if len(group.asked) >= bounds.requests:
            self._submit(asked.path)
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(bounds.stall, self._submit_all)

    def _submit_all(self) -> None:
        for path in list(self._gathered):
            self._submit(path)

    def _submit(self, path: str) -> None:
        group = self._gathered.pop(path).asked
        if not group:
            return
        label = secrets.token_hex(16)
        try:
            submission = self._submissions.add(label, (asked.call for asked in group))
        except UserError as error:
            _fail(group, error)
            return
        self._waiting[label] = {asked.call: asked for asked in group}
        self._follow(submission, path, b"".join(asked.line for asked in group))

    def _follow(self, submission: Submission, path: str = "", content: bytes = b"") -> None:
        task = self._batches.get(submission.label)
        if task is None or task.done():
            task = asyncio.create_task(self._run(submission, path, content))
            self._batches[submission.label] = task

    async def _run(self, submission: Submission, path: str, content: bytes) -> None:
        """Takes a batch to its end; whatever comes in between is told to those who wait."""
        label, batch_id = submission.label, submission.id
        try:
            if content:
                sending = asyncio.create_task(self._send(submission, path, content))
                self._sending.add(sending)
                sending.add_done_callback(self._sending.discard)
                del content
                batch_id = await asyncio.shield(sending)
            elif batch_id is None:
                if (batch_id := await self._api.find(label)) is None:
                    self._gather_again(label)  # it never arrived
                    return
                self._submissions.name(label, batch_id)
            await self._collect(label, batch_id)
        except openai.NotFoundError:
            told = f"{self._server.url} has batch {batch_id} no more; run again to submit it anew"
            self._drop(label, CallError("failed", told))
        except Exception as error:
            _fail(self._waiting.pop(label, {}).values(), error)

    async def _send(self, submission: Submission, path: str, content: bytes) -> str:
        batch_id = await self._api.create(submission.label, path, content)
        self._submissions.name(submission.label, batch_id)
        logger.warning(
            "submitted batch %s with %d calls; if this run ends, the same command with `--resume` "
            "collects it",
            *(batch_id, content.count(b"\n")),
        )
        return batch_id

    async def _collect(self, label: str, batch_id: str) -> None:
        """Waits until a batch has ended and hands out what came of it."""
        batch = await self._api.ended(batch_id)
        errors = (batch.errors.data if batch.errors else None) or []
        if any(fault.code == "token_limit_exceeded" for fault in errors):
            logger.warning("the queue of %s is full; submitting again later", self._server.url)
            await asyncio.sleep(max(self._bounds.poll, FULL_QUEUE_WAIT))
            self._gather_again(label)
            return
        lines = await self._api.lines(batch)
        self._collected |= lines
        await self._answer(self._waiting[label].values())
        self._submissions.forget(self._submissions.calls(label) - lines.keys())
        said = "".join(f": {redact(fault.message or '')}" for fault in errors[:1])
        told = f"batch {batch_id} ended as {batch.status} without an answer to this call{said}"
        self._drop(label, CallError("failed", told))

    async def _answer(self, several: Iterable[_Asked]) -> None:
        """Hands out what was collected; calls that failed may be submitted again."""
        failed: list[tuple[_Asked, Exception]] = []
        for asked in list(several):
            if (line := self._collected.pop(asked.call, None)) is None:
                continue
            try:
                reply = await self._read(asked, line)
            except (CallError, UserError) as error:
                failed.append((asked, error))
            else:
                if not asked.answer.done():
                    asked.answer.set_result(reply)
        self._submissions.forget(asked.call for asked, _ in failed)
        for asked, fault in failed:
            _fail([asked], fault)

    async def _read(self, asked: _Asked, line: Any) -> Reply:
        response = line.get("response")
        if not response:
            said = line.get("error") or {}
            told = redact(f"{said.get('code')}: {said.get('message')}")
            raise CallError("failed", f"the batch gave no answer: {told}")
        body, status = response.get("body"), response.get("status_code")
        if status == 200:
            return self._server.read(asked.request, body)
        error = body.get("error", body) if isinstance(body, dict) else body
        raise await self._server.failure(int(status or 500), error, str(error), asked.path)

    def _gather_again(self, label: str) -> None:
        for asked in self._free(label):
            self._gather(asked)

    def _drop(self, label: str, error: Exception) -> None:
        _fail(self._free(label), error)

    def _free(self, label: str) -> list[_Asked]:
        """Those that still wait for a batch, whose calls may be submitted again."""
        rest = [asked for asked in self._waiting.pop(label, {}).values() if not asked.answer.done()]
        self._submissions.forget(asked.call for asked in rest)
        return rest


class BatchLLM(LLM):
    """A model behind a batch API: ending a job does not wait for batches that are submitted.

    Args:
        server: The provider's API.
        ledger: Where finished calls and submitted batches are kept.
        limits: What may be spent. The batch API bounds what is in flight by itself.
        bounds: When calls become a batch.
    """

    def __init__(
        self, server: OpenAIBackend, ledger: Ledger, limits: Limits, bounds: Bounds
    ) -> None:
        self._batches = BatchBackend(server, Submissions(ledger.path), bounds)
        super().__init__(self._batches, ledger, replace(limits, concurrency=sys.maxsize))

    def stop(self, error: Stopped) -> None:
        """As for every model; the next run collects what is submitted."""
        super().stop(error)
        self._batches.stop(error)


def _fail(several: Iterable[_Asked], error: Exception) -> None:
    for asked in several:
        if not asked.answer.done():
            asked.answer.set_exception(error)
