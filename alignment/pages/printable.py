"""Foreign text as it is written, in which nothing moves the cursor, hides or turns the line."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with codes in place of control characters other than line break and tab.

    Marks that turn the direction of writing, invisible ones and halves of surrogate pairs count
    too.
    """
    return _UNPRINTABLE.sub(_code, text)


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
