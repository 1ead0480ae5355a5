"""A transformers model in this process as a backend."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

from alignment.llm.model import PROVIDER, Encoded, LocalModel
from alignment.llm.protocol import Reply, Request, Verb

Waiting: TypeAlias = "tuple[Encoded, asyncio.Future[Reply]]"


class LocalBackend:
    """A `LocalModel` that gathers waiting requests into batches.

    Args:
        model: As for `LocalModel`.
        device: As for `LocalModel`.
        batch_size: Most requests answered together.
    """

    provider = PROVIDER
    verbs: frozenset[Verb] = frozenset({"chat", "complete", "score"})

    def __init__(self, model: str, device: str | None = None, batch_size: int = 16) -> None:
        self.local = LocalModel(model, device)
        self.model = self.local.name
        self.fingerprint = self.local.fingerprint
        self.batch_size = batch_size
        self._queue: deque[Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> Reply:
        """Queues a request and waits for its reply."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.append((self.local.encode(request), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Nothing to free that the garbage collector would not."""

    async def _work(self) -> None:
        while self._queue:
            await asyncio.sleep(0)  # whoever is ready to ask may still join the batch
            batch = self._take()
            try:
                replies = await asyncio.to_thread(self.local.answer, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), reply in zip(batch, replies, strict=True):
                    future.set_result(reply)

    def _take(self) -> list[Waiting]:
        """The next request with those behind it that can share its batch."""
        first = self._queue[0][0].request
        batch: list[Waiting] = []
        rest: deque[Waiting] = deque()
        for item in self._queue:
            request = item[0].request
            alike = request.verb == first.verb and request.sampling == first.sampling
            (batch if alike and len(batch) < self.batch_size else rest).append(item)
        self._queue = rest
        return batch
