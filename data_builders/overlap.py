"""Prompts that a model will be evaluated on must not be among those it learns from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from alignment.cli import UserError
from alignment.core.rows import read_rows, require_columns
from alignment.llm.prompts import as_messages
from alignment.llm.protocol import Prompt
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, prompt_of
from data_builders.duplicates import NearIndex

GRAM = 13
"""Words in a row that two prompts may not share, as in UltraFeedback (arXiv 2310.01377)."""

_WORD = re.compile(r"\w+")


class Found(NamedTuple):
    """A prompt among the evaluation prompts.

    Attributes:
        how: `exact` where all words agree, `13-gram` where so many stand in a row in both, `near`
            where most pieces of the texts agree.
        source: The evaluation prompt: file and line.
    """

    how: str
    source: str


class EvalPrompts:
    """Evaluation prompts, to look others up in.

    Args:
        files: Their files; the columns are `prompt`, `instruction`, or MT-Bench's `turns`.
        near: Whether near-duplicates are found too.

    Attributes:
        count: How many there are.

    Raises:
        UserError: A file cannot be read, or its rows hold no prompts.
    """

    def __init__(self, files: Iterable[Path], *, near: bool = False) -> None:
        self.count = 0
        self._near = NearIndex() if near else None
        self._names: list[str] = []
        self._whole: dict[str, str] = {}
        self._grams: dict[str, str] = {}
        for path in files:
            for name, row in require_columns(read_rows(path), (*PROMPT_COLUMNS, "turns")):
                for turn in _turns(name, row):
                    self._add(turn, name)
                self.count += 1

    def find(self, prompt: Prompt) -> Found | None:
        """Where a user's turn of a prompt stands among them, None where none does."""
        for turn in _user_turns(prompt):
            words = _words(turn)
            if source := self._whole.get(" ".join(words)):
                return Found("exact", source)
            for gram in _grams(words):
                if source := self._grams.get(gram):
                    return Found(f"{GRAM}-gram", source)
            near = self._near.find(turn) if self._near is not None and words else None
            if near is not None:
                return Found("near", self._names[near])
        return None

    def _add(self, turn: str, name: str) -> None:
        words = _words(turn)
        if words:
            self._whole.setdefault(" ".join(words), name)
            if self._near is not None:
                self._near.add(turn)
                self._names.append(name)
        for gram in _grams(words):
            self._grams.setdefault(gram, name)


def _turns(name: str, row: Row) -> list[str]:
    turns = row.get("turns")
    if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):
        return turns
    try:
        return _user_turns(prompt_of(row))
    except Reject as error:
        raise UserError(f"{name}: {error}") from None


def _user_turns(prompt: Prompt) -> list[str]:
    turns = as_messages(prompt)
    return [str(turn.get("content") or "") for turn in turns if turn.get("role") == "user"]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: list[str]) -> Iterator[str]:
    return (" ".join(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1))
