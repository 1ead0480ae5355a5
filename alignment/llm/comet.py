"""COMET-style metrics in this process as scorers: `comet:MODEL`, from the extra `comet`.

The newest release of the library refuses the transformers that this project needs, so it lives in
an environment of its own or behind an address (`scorer:http://...`). The project's tests cannot
hold it: they run this module against a stand-in for the four names that it uses, `download_model`,
`load_from_checkpoint`, `predict` and its `scores`. It has not been run against COMET itself.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.cli import UserError
from alignment.llm.fingerprint import identity
from alignment.llm.gather import Gatherer
from alignment.llm.prompts import shorten
from alignment.llm.protocol import Reply, Request, Verb


class CometBackend:
    """A COMET model that answers the questions of `alignment.llm.scorer`.

    Args:
        model: Id of a model, or its checkpoint here, a `.ckpt` file.
        revision: Tells models of the same name apart, in the ledger.
        batch_size: Most texts scored together.

    Raises:
        UserError: The library is not installed, or cannot load the model.
    """

    provider = "comet"
    verbs: frozenset[Verb] = frozenset({"complete"})

    def __init__(self, model: str, revision: str | None = None, batch_size: int = 16) -> None:
        try:
            comet: Any = importlib.import_module("comet")
        except ImportError as error:
            raise UserError(
                f"COMET cannot be imported ({shorten(error)}); install the extra `comet` in an "
                "environment of its own, or serve the metric and give `scorer:http://...`"
            ) from None
        self.model, self.fingerprint = identity(model, revision)
        try:
            path = model if Path(model).is_file() else comet.download_model(model)
            self._metric = comet.load_from_checkpoint(path)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"COMET cannot load the model {model}: {shorten(error)}") from None
        self._batch_size = batch_size
        self._gpus = int(importlib.import_module("torch").cuda.is_available())
        self._gatherer: Gatherer[Request] = Gatherer(self._answer, lambda _: None, batch_size)

    async def ask(self, request: Request) -> Reply:
        """Queues a question and waits for its scores."""
        return await self._gatherer.ask(request)

    async def close(self) -> None:
        """Nothing to free that the end of the process would not."""

    def _answer(self, batch: Sequence[Request]) -> list[Reply]:
        questions = [json.loads(str(request.prompt)) for request in batch]
        items = [
            {"src": asked["source"], "mt": candidate}
            | ({} if asked["reference"] is None else {"ref": asked["reference"]})
            for asked in questions
            for candidate in asked["candidates"]
        ]
        said = self._metric.predict(
            items, batch_size=self._batch_size, gpus=self._gpus, progress_bar=False
        )
        scores = iter(map(float, said.scores))
        return [
            Reply(json.dumps([next(scores) for _ in asked["candidates"]])) for asked in questions
        ]
