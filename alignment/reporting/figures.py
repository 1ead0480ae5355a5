"""Figures in words, and values with their intervals, alike in every section."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import UserError
from alignment.pages.blocks import Facts, Interval
from alignment.pages.charts import bar, number

LONGEST = 6_000
"""Characters of a text that a report shows; a file of rows has them all."""


def load_json(path: Path) -> dict[str, Any]:
    """A JSON file that some command has written.

    Raises:
        UserError: It cannot be read, or holds something else than an object.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no JSON ({error}); run the command that wrote it anew"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no report, but a {type(loaded).__name__}")
    return loaded


def shown(value: Any) -> str:
    """A value of a record as a reader wants it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value) if isinstance(value, float) else f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return "none" if value is None else str(value)


def facts(title: str, rows: Sequence[tuple[str, Any]]) -> Facts:
    """Names and values, without those that are not known."""
    return Facts([(name, shown(value)) for name, value in rows if value is not None], title)


def percent(share: float) -> str:
    """A share in percent, with one decimal."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """A time: `3 h 12 min`, `2 min 5 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


class Scale(NamedTuple):
    """What a column of intervals is drawn on.

    Attributes:
        low: Its left end.
        high: Its right end.
        reference: What values are compared with.
        told: The same in words.
        digits: Decimals of values on it.
    """

    low: float
    high: float
    reference: float
    told: str
    digits: int = 3


SHARE = Scale(0.0, 1.0, 0.5, "0 to 1, the line at one half")
PERCENT = Scale(0.0, 100.0, 50.0, "0 to 100, the line at 50", digits=2)


def interval(
    name: str, value: float, ends: Sequence[float] | None, scale: Scale, note: str = ""
) -> Interval:
    """A value with its interval on a scale.

    Args:
        name: Of what.
        value: The value.
        ends: Of its interval; None where there is none.
        scale: What it is drawn on.
        note: What else is known.
    """
    digits = scale.digits
    if ends is None:
        return Interval(name, f"{value:.{digits}f}", "none", None, note)
    low, high = ends
    drawn = bar(value, low, high, scale[:2], scale.reference)
    return Interval(
        name, f"{value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}", drawn, note
    )


def cut(text: str) -> str:
    """A text, or its beginning with how much is left out."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} [{len(text) - LONGEST:,} more characters]"
