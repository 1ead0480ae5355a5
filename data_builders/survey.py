"""A look at every row before the first is built: for what depends on all rows together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from alignment.llm.options import CallOptions, part_of
from alignment.llm.protocol import GO_ON, CallError
from alignment.llm.rows import Named, Reject, Row

T = TypeVar("T")
C = TypeVar("C")


class Survey(Generic[T, C]):
    """What follows from a look at each row, made once for all who ask.

    A look that asks models costs nothing twice: the ledger answers it when the row is built.

    Args:
        rows: The rows, read anew by each call.
        conclude: What follows from all of it, made once.
        options: Say how many rows may be in work at the same time, which bounds memory.
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Named]],
        conclude: Callable[[list[T]], C],
        options: CallOptions,
    ) -> None:
        self._rows = rows
        self._conclude = conclude
        self._part = part_of(options)
        self._window = options.batch_requests if options.mode == "batch" else 1024
        self._task: asyncio.Task[C] | None = None

    async def conclusion(self, look: Callable[[Row], Awaitable[T]]) -> C:
        """What follows from all rows.

        Args:
            look: What to learn of a row; a row that it rejects, or that gets no answer, gives
                nothing. The first caller's look serves all.

        Raises:
            Reject: `not_joined` in a shard, which sees a part of the rows.
            UserError: As for the calls that the look makes.
        """
        if self._part is not None:
            raise Reject("not_joined", "what depends on all rows is made when shards are joined")
        if self._task is None:
            self._task = asyncio.create_task(self._run(look))
        return await self._task

    async def _run(self, look: Callable[[Row], Awaitable[T]]) -> C:
        found: list[T] = []
        ready: deque[asyncio.Task[list[T]]] = deque()
        for _, row in self._rows():
            ready.append(asyncio.create_task(_one(row, look)))
            if len(ready) >= self._window:
                found += await ready.popleft()
        while ready:
            found += await ready.popleft()
        return self._conclude(found)


def unsurveyed() -> Reject:
    """Why a row is rejected whose look got no answer, although its own calls get one later."""
    return Reject("unsurveyed", f"no answer came when all rows were looked at; {GO_ON}")


async def _one(row: Row, look: Callable[[Row], Awaitable[T]]) -> list[T]:
    try:
        return [await look(row)]
    except (Reject, CallError):
        return []
