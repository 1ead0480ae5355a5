"""What a page is made of, whatever is reported: sections of tables, charts, notes and answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from alignment.pages.charts import Bar, Chart


class Block(Protocol):
    """Anything that stands in a section; the template draws it by its kind."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    title: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows, numbers stand to the right.

    Attributes:
        title: What it is.
        head: Names of the columns.
        rows: Their values.
        is_words: Whether values are words, which stand to the left.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_words: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Charts:
    """Charts side by side, and their values in a table that can be opened."""

    charts: Sequence[Chart]
    kind: ClassVar[str] = "charts"


class Interval(NamedTuple):
    """A row of a table of intervals.

    Attributes:
        name: Of what.
        value: In words.
        interval: In words.
        bar: How it is drawn; None where there is no interval.
        note: What else is known.
    """

    name: str
    value: str
    interval: str
    bar: Bar | None
    note: str = ""


@dataclass(frozen=True)
class Intervals:
    """Values with their intervals on one scale.

    Attributes:
        title: What they are.
        rows: One each.
        scale: What the ends of the scale and the line in it mean.
    """

    title: str
    rows: Sequence[Interval]
    scale: str
    kind: ClassVar[str] = "intervals"


@dataclass(frozen=True)
class Note:
    """A sentence: what is missing, or a warning."""

    text: str
    is_warning: bool = False
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is: a command, a formula."""

    title: str
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Answer:
    """One of several responses to a prompt.

    Attributes:
        title: Whose it is.
        tone: `chosen`, `rejected` or `plain`.
        pieces: Its text in parts, each with whether the other side has something else there.
        note: Reward, length, what was cut.
    """

    title: str
    tone: str
    pieces: Sequence[tuple[str, bool]]
    note: str = ""


@dataclass(frozen=True)
class Exchange:
    """A prompt with responses side by side, and what was said of them.

    Attributes:
        title: Its name.
        prompt: What was asked.
        answers: The responses.
        remarks: Who said what of them.
        outcome: What came of it, in a few words.
    """

    title: str
    prompt: str
    answers: Sequence[Answer]
    remarks: Sequence[tuple[str, str]] = ()
    outcome: str = ""
    kind: ClassVar[str] = "exchange"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name: What links to it say.
        blocks: What stands in it.
        headline: The figures that matter most: value and what it is.
    """

    name: str
    blocks: Sequence[Block]
    headline: Sequence[tuple[str, str]] = field(default=())

    @property
    def anchor(self) -> str:
        """The name as it stands in an address."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())


def present(blocks: Iterable[Block | None]) -> list[Block]:
    """Those that there are."""
    return [block for block in blocks if block is not None]
