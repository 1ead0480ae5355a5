"""API keys stay out of all that is written: messages, logs, tracebacks in logs, answers."""

from __future__ import annotations

import logging
from typing import Any

SHORTEST = 8
"""Characters. Shorter values are placeholders such as `EMPTY`, which are words of other texts."""

_hidden: set[str] = set()


class _Record(logging.LogRecord):
    """A log record whose message and traceback show no key, whichever library wrote it."""

    _traceback: str | None = None

    def getMessage(self) -> str:
        """The message without keys."""
        return redact(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The formatted traceback, which handlers share."""
        return self._traceback

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._traceback = text and redact(text)


def hide(key: str) -> None:
    """Keeps a key out of everything logged in this process from now on, and known to `redact`."""
    if len(key) >= SHORTEST:
        _hidden.add(key)
        logging.setLogRecordFactory(_Record)


def redact(text: str) -> str:
    """The text with `***` in place of every hidden key."""
    for key in _hidden:
        text = text.replace(key, "***")
    return text


def redact_all(value: Any) -> Any:
    """A JSON value of which every text is redacted: a server may echo what it was sent."""
    if not _hidden:
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_all(item) for item in value]
    if isinstance(value, dict):
        return {redact(name): redact_all(item) for name, item in value.items()}
    return value
