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
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import openai

from alignment.cli import UserError
from alignment.llm.calls import source_of
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.openai import OpenAIBackend
from alignment.llm.pacing import Limits
from alignment.llm.protocol import CallError, Reply, Request, Stopped, Verb
from alignment.llm.redaction import redact
from alignment.llm.submissions import Submission, Submissions

logger = logging.getLogger(__name__)

LABEL = "contrastive_alignment"
"""The field of a batch's metadata that holds its name in the ledger."""
MOST_BYTES = 100_000_000
"""Of a batch's file: what the strictest of providers take."""
FULL_QUEUE_WAIT = 600.0
"""Seconds before a batch is submitted again that found the provider's queue full."""

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_SEARCHED = 1000
"""Batches at the provider among which one that may have arrived is looked for."""

T = TypeVar("T")


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
        self._server = server
        self._submissions = submissions
        self._bounds = bounds or Bounds()
        self._reached = False
        self._stopped = False
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
        self._stopped = True
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
            elif batch_id is None and (batch_id := await self._find(submission)) is None:
                self._gather_again(label)  # it never arrived
                return
            await self._collect(label, batch_id)
        except openai.NotFoundError:
            told = f"{self._server.url} has batch {batch_id} no more; run again to submit it anew"
            self._drop(label, CallError("failed", told))
        except Exception as error:
            _fail(self._waiting.pop(label, {}).values(), error)

    async def _send(self, submission: Submission, path: str, content: bytes) -> str:
        """Uploads and creates a batch, and records its id."""
        client, label = self._server.client, submission.label
        endpoint = cast(Literal["/v1/chat/completions"], f"/v1{path}")
        failed_before = False

        async def create() -> str:
            # A request that seemed to fail may have arrived.
            nonlocal failed_before
            if failed_before and (found := await self._find(submission)) is not None:
                return found
            failed_before = True
            made = await client.batches.create(
                input_file_id=file.id,
                endpoint=endpoint,
                completion_window="24h",
                metadata={LABEL: label},
            )
            return made.id

        try:
            file = await self._patiently(
                lambda: client.files.create(file=(f"{label}.jsonl", content), purpose="batch")
            )
            batch_id = await self._patiently(create)
        except openai.NotFoundError:
            raise UserError(
                f"{self._server.url} offers no batches; leave out `--mode batch`"
            ) from None
        self._submissions.name(label, batch_id)
        logger.warning(
            "submitted batch %s with %d calls; if this run ends, the same command with `--resume` "
            "collects it",
            *(batch_id, content.count(b"\n")),
        )
        return batch_id

    async def _find(self, submission: Submission) -> str | None:
        """The id of a batch that may have arrived, by its label."""

        async def search() -> str | None:
            seen = 0
            async for batch in self._server.client.batches.list(limit=100):
                if (batch.metadata or {}).get(LABEL) == submission.label:
                    return batch.id
                seen += 1
                if seen == _SEARCHED:
                    break
            return None

        try:
            found = await self._patiently(search)
        except openai.NotFoundError:  # a provider that lists none
            return None
        if found is not None:
            self._submissions.name(submission.label, found)
        return found

    async def _collect(self, label: str, batch_id: str) -> None:
        """Waits until a batch has ended and hands out what came of it."""
        client = self._server.client
        while True:
            batch = await self._patiently(lambda: client.batches.retrieve(batch_id))
            if batch.status in _ENDED:
                break
            logger.info("batch %s: %s, %s", batch_id, batch.status, batch.request_counts)
            await asyncio.sleep(self._bounds.poll)
        errors = (batch.errors.data if batch.errors else None) or []
        if any(fault.code == "token_limit_exceeded" for fault in errors):
            logger.warning("the queue of %s is full; submitting again later", self._server.url)
            await asyncio.sleep(max(self._bounds.poll, FULL_QUEUE_WAIT))
            self._gather_again(label)
            return
        answered: set[str] = set()
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            lines = await self._download(file)
            answered |= lines.keys()
            self._collected |= lines
        await self._answer(self._waiting[label].values())
        self._submissions.forget(self._submissions.calls(label) - answered)
        said = "".join(f": {redact(fault.message or '')}" for fault in errors[:1])
        told = f"batch {batch_id} ended as {batch.status} without an answer to this call{said}"
        self._drop(label, CallError("failed", told))

    async def _download(self, file: str) -> dict[str, Any]:
        """The lines of a file by their call."""
        content = await self._patiently(lambda: self._server.client.files.content(file))
        try:
            lines = [json.loads(line) for line in content.content.split(b"\n") if line.strip()]
            return {str(line["custom_id"]): line for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            told = f"{self._server.url} has a broken file of answers, {file}: {error!r}"
            raise CallError("unparseable", f"{told}; run again to fetch it again") from None

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

    async def _patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        """Repeats a request until the provider answers; one never met is told at once.

        Raises:
            openai.NotFoundError: What is asked for is not there.
            UserError: The provider cannot be asked before the user mends something.
            CallError: The provider objects, or the job is to end.
        """
        while True:
            answer = await self._try(send)
            if not isinstance(answer, CallError):
                return answer
            if self._stopped or not answer.retry:
                raise answer
            wait = max(answer.retry_after or 0.0, self._bounds.poll)
            logger.warning("%s; trying again in %.0f s", answer, wait)
            await asyncio.sleep(wait)

    async def _try(self, send: Callable[[], Awaitable[T]]) -> T | CallError:
        try:
            answer = await send()
            if isinstance(answer, str) and answer.lstrip().startswith("<"):
                raise ValueError("a web page")
            self._reached = True
            return answer
        except openai.NotFoundError:
            raise
        except openai.APIStatusError as error:
            self._reached = True
            failure = await self._server.failure(
                *(error.status_code, error.body, error.response.text),
                *("/batches", error.response.headers),
            )
            if not isinstance(failure, CallError):
                raise failure from None
            return failure
        except openai.APIConnectionError as error:
            trouble = self._server.away(error)
        except ValueError as error:
            told = f"{self._server.url} does not answer as an API of batches: {error}"
            trouble = CallError("unparseable", told, retry=True)
        if not self._reached:
            raise UserError(str(trouble))
        return trouble


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
