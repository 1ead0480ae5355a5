"""A provider's batch API in OpenAI's format, asked with patience."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import openai

from alignment.cli import UserError
from alignment.llm.openai import OpenAIBackend
from alignment.llm.protocol import CallError

if TYPE_CHECKING:
    from openai.types import Batch

logger = logging.getLogger(__name__)

LABEL = "contrastive_alignment"
"""The field of a batch's metadata that holds its label."""

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_SEARCHED = 1000
"""Batches at the provider among which one that may have arrived is looked for."""

T = TypeVar("T")


class BatchAPI:
    """Batches at a provider: created once, found by label, watched to their end.

    A provider that was met before is waited for through connections that drop and statuses that
    may pass.

    Args:
        server: The provider's API.
        poll: Seconds between two looks at a batch, and before a request is repeated.

    Attributes:
        stopped: Once it is set, nothing is repeated any more.
    """

    def __init__(self, server: OpenAIBackend, poll: float) -> None:
        self.stopped = False
        self._server = server
        self._client = server.client
        self._poll = poll
        self._reached = False

    async def create(self, label: str, path: str, content: bytes) -> str:
        """Uploads a file of calls and makes a batch of it.

        Args:
            label: By which `find` knows the batch.
            path: What the calls ask for, such as `/chat/completions`.
            content: The calls, JSON Lines.

        Returns:
            The batch's id.

        Raises:
            UserError: The provider offers no batches, or cannot be asked.
            CallError: It objects to this batch.
        """
        endpoint = cast(Literal["/v1/chat/completions"], f"/v1{path}")
        failed_before = False

        async def create() -> str:
            # A request that seemed to fail may have arrived.
            nonlocal failed_before
            if failed_before and (found := await self.find(label)) is not None:
                return found
            failed_before = True
            made = await self._client.batches.create(
                input_file_id=file.id,
                endpoint=endpoint,
                completion_window="24h",
                metadata={LABEL: label},
            )
            return made.id

        try:
            file = await self._patiently(
                lambda: self._client.files.create(file=(f"{label}.jsonl", content), purpose="batch")
            )
            return await self._patiently(create)
        except openai.NotFoundError:
            raise UserError(
                f"{self._server.url} offers no batches; leave out `--mode batch`"
            ) from None

    async def find(self, label: str) -> str | None:
        """The id of a batch that may have arrived, None where the provider shows none."""

        async def search() -> str | None:
            seen = 0
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(LABEL) == label:
                    return batch.id
                seen += 1
                if seen == _SEARCHED:
                    break
            return None

        try:
            return await self._patiently(search)
        except openai.NotFoundError:  # a provider that lists none
            return None

    async def ended(self, batch_id: str) -> Batch:
        """Waits until a batch has ended.

        Raises:
            openai.NotFoundError: The provider has it no more.
            UserError: The provider cannot be asked.
        """
        while True:
            batch = await self._patiently(lambda: self._client.batches.retrieve(batch_id))
            if batch.status in _ENDED:
                return batch
            logger.info("batch %s: %s, %s", batch_id, batch.status, batch.request_counts)
            await asyncio.sleep(self._poll)

    async def lines(self, batch: Batch) -> dict[str, Any]:
        """What came of the calls of a batch that has ended, by their `custom_id`.

        Raises:
            openai.NotFoundError: The provider has it no more.
            CallError: A file of answers is broken.
            UserError: The provider cannot be asked.
        """
        lines: dict[str, Any] = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            lines |= await self._lines_of(file)
        return lines

    async def _lines_of(self, file: str) -> dict[str, Any]:
        content = await self._patiently(lambda: self._client.files.content(file))
        try:
            lines = [json.loads(line) for line in content.content.split(b"\n") if line.strip()]
            return {str(line["custom_id"]): line for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            told = f"{self._server.url} has a broken file of answers, {file}: {error!r}"
            raise CallError("unparseable", f"{told}; run again to fetch it again") from None

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
            if self.stopped or not answer.retry:
                raise answer
            wait = max(answer.retry_after or 0.0, self._poll)
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
