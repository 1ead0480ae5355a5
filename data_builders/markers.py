"""Markers in a reply: names that set its parts apart, in the spellings that models give them."""

from __future__ import annotations

import re
from typing import NamedTuple

from alignment.llm.rows import Reject


class Parts(NamedTuple):
    """A reply, taken apart.

    Attributes:
        rationale: What comes before the answer, without its own marker; may be empty.
        answer: What follows the answer's marker; may be empty.
    """

    rationale: str
    answer: str


def split_reply(text: str, answer: str, rationale: str, asked: str) -> Parts:
    """Splits a reply, once, at the marker of its answer.

    A marker is a name at the start of a line in one of these spellings: a heading (`## ...`), bold
    (`**...**`), an identifier (`{...}`), each with or without a colon and a number before it, the
    name with a colon, or the name alone on its line. The first marker counts; an answer that
    repeats it is kept whole. Where no line begins with a marker, the first bold one or identifier
    within a line counts.

    Args:
        text: The reply.
        answer: A pattern of the names that mark the answer.
        rationale: A pattern of the names that mark what comes before it.
        asked: The marker that the prompt asks for, for messages.

    Raises:
        Reject: `parse_failed` where there is no marker of the answer.
    """
    marker = _marker(answer).search(text) or re.search(
        rf"(?:\{{(?:{answer})\}}|\*\*(?:{answer})\*\*):?", text, re.IGNORECASE
    )
    if marker is None:
        raise Reject("parse_failed", f"the reply has no line such as `{asked}`", reply=text)
    before, after = text[: marker.start()].strip(), text[marker.end() :].strip()
    head = _marker(rationale).match(before)
    return Parts(before[head.end() :].strip() if head else before, after)


def _marker(names: str) -> re.Pattern[str]:
    """A name at the start of a line, set apart by markup around it, a colon or the line's end."""
    marked = rf"[#*_`{{\[][#*_`{{\[ \t]*(?:{names})[ \t]*[*_`}}\]]*:?"
    bare = rf"(?:{names})[ \t]*(?::|$)"
    return re.compile(
        rf"^[ \t>]*(?:\d+[.)][ \t]+)?(?:{marked}|{bare})[*_`]*", re.IGNORECASE | re.MULTILINE
    )
