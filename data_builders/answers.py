"""Answers made elsewhere, in the place of a model that would be asked."""

from __future__ import annotations

import logging
from pathlib import Path

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Prompt
from alignment.llm.rows import Reject, Row, prompt_of, response_of
from data_builders.pairs import Side, refuse_truncated

logger = logging.getLogger(__name__)


class AnswerFile:
    """A file of answers: rows with `prompt` and `response`, as `alignment generate` writes them.

    Of several answers to a prompt the first counts.

    Args:
        path: The file.

    Attributes:
        path: The file.

    Raises:
        UserError: The file cannot be read, or a row has no prompt.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: dict[str, Row] = {}
        self._asked: set[str] = set()
        further = 0
        for name, row in read_rows(path):
            try:
                key = _key(prompt_of(row))
            except Reject as error:
                raise UserError(f"{name}: {error}") from None
            further += key in self._rows
            self._rows.setdefault(key, row)
        if further:
            logger.warning("%s: %d second answers to a prompt are left out", path, further)

    def answer(self, prompt: Prompt) -> Side:
        """The answer to a prompt.

        Raises:
            Reject: `unmatched` where the prompt is not in the file, or what else is wrong with it.
        """
        key = _key(prompt)
        if key not in self._rows:
            raise Reject("unmatched", f"{self.path} has no answer to this prompt")
        self._asked.add(key)
        row = self._rows[key]
        refuse_truncated(row)
        return Side(response_of(row), row.get("model"), on_policy=False)

    @property
    def unused(self) -> int:
        """How many answers no prompt has asked for."""
        return len(self._rows) - len(self._asked)


def _key(prompt: Prompt) -> str:
    return as_text(prompt).strip()
