"""Calls in flight gathered into batches for a model in this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from alignment.llm.protocol import Reply

T = TypeVar("T")


class Gatherer(Generic[T]):
    """Answers whatever waits together, one batch at a time, in a thread of its own.

    Args:
        answer: The replies to a batch, in order.
        alike: What the members of a batch must have in common.
        most: Most members of a batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[T]], Sequence[Reply]],
        alike: Callable[[T], object],
        most: int,
    ) -> None:
        self._answer = answer
        self._alike = alike
        self._most = most
        self._queue: deque[tuple[T, asyncio.Future[Reply]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, item: T) -> Reply:
        """Queues an item and waits for its reply."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._queue:
            await asyncio.sleep(0)  # whoever is ready to ask may still join the batch
            batch = self._take()
            try:
                replies = await asyncio.to_thread(self._answer, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), reply in zip(batch, replies, strict=True):
                    if not future.done():
                        future.set_result(reply)

    def _take(self) -> list[tuple[T, asyncio.Future[Reply]]]:
        """The next item with those behind it that can share its batch."""
        first = self._alike(self._queue[0][0])
        batch: list[tuple[T, asyncio.Future[Reply]]] = []
        rest: deque[tuple[T, asyncio.Future[Reply]]] = deque()
        for item, future in self._queue:
            joins = len(batch) < self._most and self._alike(item) == first
            (batch if joins else rest).append((item, future))
        self._queue = rest
        return batch
