"""Which texts are most like another one: BM25, or any sentence encoder."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from alignment.cli import UserError
from alignment.llm.prompts import shorten

_WORD = re.compile(r"\w+")


class Retriever(Protocol):
    """Orders the texts that it was made with.

    Attributes:
        name: As `--retriever` takes it.
    """

    name: str

    def ranked(self, text: str) -> list[int]:
        """The indices of all texts, the most alike first; equals in their own order."""
        ...


class BM25:
    """Okapi's BM25 on lower-case words, as bm25s computes it (Lucene's form).

    Args:
        texts: What is ordered.

    Raises:
        UserError: bm25s is not installed.
    """

    name = "bm25"

    def __init__(self, texts: Sequence[str]) -> None:
        words = [_words(text) for text in texts]
        self._count = len(texts)
        self._index: Any = None
        if any(words):
            self._index = _imported("bm25s").BM25()
            self._index.index(words, show_progress=False)

    def ranked(self, text: str) -> list[int]:
        """By BM25 of the text's words; texts that share none keep their own order, at the end."""
        scores = np.zeros(self._count)
        words = _words(text)
        if self._index is not None and words:
            scores = self._index.get_scores(words)
        return _descending(scores)


class SentenceEncoder:
    """Cosine of sentence vectors, by any model that sentence-transformers loads.

    Args:
        model: A folder or hub id.
        texts: What is ordered.
        device: Where the encoder runs; by default an accelerator where there is one.

    Raises:
        UserError: sentence-transformers is not installed, or there is no such model.
    """

    def __init__(self, model: str, texts: Sequence[str], device: str | None = None) -> None:
        self.name = model
        library = _imported("sentence_transformers")
        try:
            self._model = library.SentenceTransformer(model, device=device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load the sentence encoder {model} ({shorten(error)})"
            ) from None
        self._vectors = self._encode(texts)

    def ranked(self, text: str) -> list[int]:
        """By the cosine with the text's vector."""
        return _descending(self._vectors @ self._encode([text])[0])

    def _encode(self, texts: Sequence[str]) -> Any:
        return self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )


def _descending(scores: Any) -> list[int]:
    order: list[int] = np.argsort(-np.asarray(scores), kind="stable").tolist()
    return order


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{name} cannot be imported ({shorten(error)}); install the extra `retrieval`, see "
            "docs/decoding.md"
        ) from None
