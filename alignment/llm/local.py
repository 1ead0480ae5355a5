"""A transformers model in this process as a backend."""

from __future__ import annotations

from alignment.llm.gather import Gatherer
from alignment.llm.model import PROVIDER, Encoded, LocalModel
from alignment.llm.protocol import Reply, Request, Verb


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
        self._gatherer: Gatherer[Encoded] = Gatherer(
            lambda batch: self.local.answer(batch),
            lambda encoded: (encoded.request.verb, encoded.request.sampling),
            batch_size,
        )

    async def ask(self, request: Request) -> Reply:
        """Queues a request and waits for its reply."""
        return await self._gatherer.ask(self.local.encode(request))

    async def close(self) -> None:
        """Nothing to free that the garbage collector would not."""
