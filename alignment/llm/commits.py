"""What many calls want of the ledger at once, in one transaction for each turn of the loop."""

from __future__ import annotations

import asyncio

from alignment.cli import UserError
from alignment.llm.ledger import Entry, Ledger


class Commits:
    """Gathers claims and records, and answers each when it is committed.

    The busier the loop, the more share a transaction; nothing ever waits for company.

    Args:
        ledger: Where they go.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._claims: dict[bytes, asyncio.Future[bool]] = {}
        self._entries: dict[bytes, tuple[Entry, asyncio.Future[bool]]] = {}

    async def claim(self, key: bytes) -> bool:
        """As `Ledger.claim`; nobody else here may be claiming the same key."""
        self._schedule()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._claims[key] = future
        return await future

    async def put(self, entry: Entry) -> None:
        """As `Ledger.put`."""
        self._schedule()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._entries[entry.key] = (entry, future)
        await future

    def _schedule(self) -> None:
        if not self._claims and not self._entries:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        # Who gave up meanwhile claims nothing, but what was paid for is kept in any case.
        claims = {key: future for key, future in self._claims.items() if not future.done()}
        entries = [entry for entry, _ in self._entries.values()]
        waiting = {**claims, **{key: future for key, (_, future) in self._entries.items()}}
        self._claims, self._entries = {}, {}
        try:
            claimed = self._ledger.commit(entries, claims)
        except UserError as error:
            for future in waiting.values():
                if not future.done():
                    future.set_exception(error)
            return
        for key, future in waiting.items():
            if not future.done():
                future.set_result(key in claimed)
