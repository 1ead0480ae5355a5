"""Scorers of texts behind an HTTP address: `scorer:http://host:port/path`.

The protocol: a POST of `{"source": text, "candidates": [text, ...], "reference": text or null}` is
answered by `{"scores": [number, ...]}`, one for each candidate in their order, higher is better.
The engine asks a scorer as it asks a model, so that its answers are kept in the ledger, retried and
paced alike: the JSON of a question is the prompt of `complete`, that of the scores is the reply.
"""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import urlsplit

from alignment.llm.openai import OpenAIBackend
from alignment.llm.prompts import shorten
from alignment.llm.protocol import CallError, Reply, Request, Verb


class HTTPScorer(OpenAIBackend):
    """A scorer behind an address.

    Args:
        url: The address that questions are posted to.
        api_key_env: The environment variable that holds the key, None for no key.
        revision: Tells scorers behind one address apart, in the ledger.
        timeout: Seconds for one request.

    Raises:
        UserError: As for `OpenAIBackend`.
    """

    verbs: frozenset[Verb] = frozenset({"complete"})
    hint = "a scorer's address takes POST requests, see docs/builders.md"

    def __init__(
        self,
        url: str,
        api_key_env: str | None = None,
        revision: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        address = urlsplit(url)
        self._path = address.path
        host = address._replace(path="").geturl() or url
        super().__init__(url, host, api_key_env, revision, timeout)

    def body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the JSON of a question."""
        return self._path, json.loads(str(request.prompt))

    def read(self, request: Request, answer: Any) -> Reply:
        """The scores in the JSON of an answer.

        Raises:
            CallError: There is not one finite number for each candidate.
        """
        scores = answer.get("scores") if isinstance(answer, dict) else None
        count = len(json.loads(str(request.prompt))["candidates"])
        if not isinstance(scores, list) or len(scores) != count or not all(map(_finite, scores)):
            told = f"{self.model} did not answer with {count} `scores`: {shorten(answer)}"
            raise CallError("unparseable", told)
        return Reply(json.dumps(scores))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
