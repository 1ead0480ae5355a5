"""What is in a file of rows: the figures and the examples that any view of it shows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from alignment.cli import UserError
from alignment.core.groups import (
    CHOSEN,
    REJECTED,
    Group,
    Response,
    RowError,
    text_of,
)
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.rows import Row
from data_builders.overlap import EvalPrompts
from data_builders.statistics import Collector, Statistics, format_of

T = TypeVar("T")

_ROLES = {CHOSEN: "chosen", REJECTED: "rejected"}


@dataclass(frozen=True)
class Side:
    """A response of an example.

    Attributes:
        label: `chosen`, `rejected` or `response`.
        text: Its words.
        reward: Its reward, None where the data has none.
        model: Who wrote it, None where the data does not say.
    """

    label: str
    text: str
    reward: float | None = None
    model: str | None = None


@dataclass(frozen=True)
class Example:
    """A row to look at.

    Attributes:
        source: File and line.
        format: As `format_of` names it.
        prompt: Its words; of several messages each begins with its role.
        sides: Its responses: chosen before rejected, others by reward, the best first.
        judgment: What a judge said of the response, None where there is none.
    """

    source: str
    format: str
    prompt: str
    sides: list[Side]
    judgment: str | None = None


@dataclass(frozen=True)
class Losses:
    """Rows that are no data.

    Attributes:
        count: How many.
        reasons: Reason -> how many of them.
        first: Reason -> what is said of the first of them.
    """

    count: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """All that is shown of a file.

    Attributes:
        file: Its path.
        bytes: Its size.
        columns: Column -> kind of value -> rows that have it.
        unread: Rows that training would reject.
        rejects: Rows that the builder of the file has dropped; None where no such file lies beside.
        report: What the builder reports of the file; None where there is no such report.
        unit: Of the lengths: `characters` or `tokens`.
        statistics: Of the rows that can be read.
        overlap: Rows whose prompt is an evaluation prompt; None where none were given.
        examples: Rows drawn at random, in the order of the file.
    """

    file: str
    bytes: int
    columns: dict[str, dict[str, int]]
    unread: Losses
    rejects: Losses | None
    report: dict[str, Any] | None
    unit: str
    statistics: Statistics
    overlap: list[dict[str, str]] | None
    examples: list[Example]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "statistics": self.statistics.as_dict()}


class Draw(Generic[T]):
    """Some of the items of a stream, each drawn with the same chance (algorithm R).

    Args:
        size: How many to draw.
        seed: Of the draw.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._rng = random.Random(seed)
        self._drawn: list[tuple[int, T]] = []
        self.seen = 0

    def add(self, make: Callable[[], T]) -> None:
        """Takes note of an item, which is made only where it is drawn."""
        self.seen += 1
        place = self._rng.randrange(self.seen)
        if len(self._drawn) < self._size:
            self._drawn.append((self.seen, make()))
        elif place < self._size:
            self._drawn[place] = (self.seen, make())

    def items(self) -> list[T]:
        """What was drawn, in the order of the stream."""
        return [item for _, item in sorted(self._drawn, key=itemgetter(0))]


def inspect_file(
    path: Path,
    *,
    examples: int = 3,
    seed: int = 0,
    length: Callable[[str], int] | None = None,
    evaluation: EvalPrompts | None = None,
) -> Inspection:
    """Reads a file once and says what is in it.

    Args:
        path: Any file that training reads.
        examples: How many rows to draw.
        seed: Of the draw.
        length: Of a text in tokens; characters are counted where it is None.
        evaluation: Prompts to look for among those of the file.

    Raises:
        UserError: The file is missing, damaged or holds no rows.
    """
    collector = Collector(length or len)
    columns: dict[str, Counter[str]] = {}
    unread = _Losses()
    overlap: list[dict[str, str]] = []
    drawn: Draw[Example] = Draw(examples, seed)
    for name, row in read_rows(path):
        for column, value in row.items():
            columns.setdefault(column, Counter())[kind_of(value)] += 1
        try:
            group = collector.add(row)
        except RowError as error:
            unread.add(error.reason, f"{name}: {error}")
            continue
        if evaluation is not None and (found := evaluation.find(group.prompt)):
            overlap.append({"row": name, "how": found.how, "source": found.source})
        drawn.add(partial(example_of, name, row, group))
    if not columns:
        raise UserError(f"{path}: the file holds no rows")
    return Inspection(
        file=str(path),
        bytes=path.stat().st_size,
        columns={name: dict(kinds.most_common()) for name, kinds in columns.items()},
        unread=unread.done(),
        rejects=_rejects(rejects_path(path)),
        report=_report(path.with_name(path.name + ".report.json")),
        unit="characters" if length is None else "tokens",
        statistics=collector.statistics(),
        overlap=None if evaluation is None else overlap,
        examples=drawn.items(),
    )


def kind_of(value: Any) -> str:
    """What a value is, as a reader of the schema wants to know it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    for kinds, name in (((int, float), "number"), ((str,), "text"), ((Mapping,), "object")):
        if isinstance(value, kinds):
            return name
    if not value:
        return "empty list"
    if all(isinstance(item, Mapping) and {"role", "content"} <= item.keys() for item in value):
        return "messages"
    inner = {kind_of(item) for item in value}
    return f"list of {inner.pop()}" if len(inner) == 1 else "list of several kinds"


class _Losses:
    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, told: str) -> None:
        self._reasons[reason] += 1
        self._first.setdefault(reason, told)

    def done(self) -> Losses:
        return Losses(self._reasons.total(), dict(self._reasons.most_common()), self._first)


def rejects_path(path: Path) -> Path:
    """Where the builder of a file lists what it has dropped."""
    return path.with_name(path.name + ".rejects.jsonl")


def _rejects(path: Path) -> Losses | None:
    """What a builder has dropped; parts of rows that were kept are not counted."""
    if not path.is_file():
        return None
    losses = _Losses()
    for _, row in read_rows(path):
        if not row.get("partial"):
            losses.add(str(row.get("reason")), f"{row.get('source')}: {row.get('message')}")
    return losses.done()


def _report(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); build anew or remove it") from None
    names = ("builder", "version", "kept", "written", "dropped", "partial", "models", "dollars")
    return {name: loaded.get(name) for name in names}


def example_of(name: str, row: Row, group: Group) -> Example:
    """A row as it is shown.

    Args:
        name: File and line.
        row: Its columns.
        group: What training makes of it.
    """
    responses = [response for response in group.responses if response.twin is None]
    judgment = row.get("judgment")
    form = format_of(group)
    return Example(
        source=name,
        format=form,
        prompt=as_text(group.prompt).strip(),
        sides=[
            _side(response, labelled=form in ("pair", "group") or row.get("label") is not None)
            for response in sorted(responses, key=_rank)
        ],
        judgment=None if judgment is None else str(judgment),
    )


def _rank(response: Response) -> tuple[int, float]:
    """Chosen first, rejected last, the best reward before others."""
    return -response.role, -(response.reward or 0.0)


def _side(response: Response, *, labelled: bool) -> Side:
    label = _ROLES.get(response.role, "response") if labelled else "response"
    return Side(label, text_of(response.content), response.reward, response.model)
