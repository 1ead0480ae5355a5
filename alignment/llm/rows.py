"""Mapping calls over rows: output in input order, and a reason for every row without output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from tqdm import tqdm

from alignment.cli import UserError, nearest
from alignment.core.parquet import write_parquet
from alignment.llm.protocol import CallError, Message, Stopped

Row: TypeAlias = Mapping[str, Any]
Named: TypeAlias = tuple[str, Row]
"""A row with its name for messages."""
Made: TypeAlias = "list[Row | Reject] | Reject | CallError | Stopped"

PROMPT_COLUMNS = ("prompt", "instruction")
RESPONSE_COLUMNS = ("response", "output", "completion")
"""Where `prompt_of` and `response_of` look."""


class Reject(Exception):
    """A row that gives no data, with the reason under which it is counted.

    Attributes:
        reason: A short stable code such as `parse_failed`, `empty`, `identical`.
        details: What to keep beside the row, such as the answer that could not be read.
    """

    def __init__(self, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.reason = reason
        self.details = details


class Bundle(dict[str, Any]):
    """Several input rows that are worked on as one, but counted and rejected one by one.

    Args:
        members: The rows, each with its name.
        **columns: What the job sees as the row.
    """

    def __init__(self, members: Sequence[Named], **columns: Any) -> None:
        super().__init__(columns)
        self.members = members


def members_of(name: str, row: Row) -> Sequence[Named]:
    """The input rows that a row of a job stands for: itself, or those of a bundle."""
    return row.members if isinstance(row, Bundle) else ((name, row),)


@dataclass
class MapReport:
    """What became of the rows of a job: `kept`, `dropped` and `missing` add up to the rows read.

    Attributes:
        kept: Rows that gave output.
        written: Rows of output.
        dropped: Reason -> rows that gave none.
        partial: Reason -> how often a row gave less output than it might have.
        missing: Rows that were not finished when the job was stopped.
        examples: Reason -> what was said about the first of them.
    """

    kept: int = 0
    written: int = 0
    missing: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def drop(self, rejected: Row) -> None:
        """Counts a row that gave no output, as `reject_row` describes it."""
        self.dropped[rejected["reason"]] += 1
        told = f"{rejected['source']}: {rejected['message']}"
        self.examples.setdefault(rejected["reason"], told)

    def refuse_empty(self, source: str | Path) -> None:
        """Refuses a job that kept nothing.

        Raises:
            UserError: No row gave output; it says why the most were dropped.
        """
        if not self.kept:
            (reason, count), *_ = self.dropped.most_common(1) or [("no rows", 0)]
            told = self.examples.get(reason, "the file holds no rows")
            raise UserError(f"nothing came out of {source}: {reason} ({count} rows): {told}")

    def __str__(self) -> str:
        """`kept 95 of 100 rows; dropped 5 (parse_failed 3, identical 2)`."""
        lost = self.dropped.total()
        told = f"kept {self.kept} of {self.kept + lost} rows; dropped {lost}"
        told += f" ({_by_count(self.dropped)})" if lost else ""
        if self.written not in (0, self.kept):
            told += f"; {self.written} rows written"
        if self.partial:
            told += f"; {self.partial.total()} more could not be made ({_by_count(self.partial)})"
        return told


def reject_row(name: str, row: Row, error: Reject | CallError) -> Row:
    """A row of the file of rejects: where the row came from, the reason, and the row itself."""
    reason, details = (
        (error.reason, error.details) if isinstance(error, Reject) else (error.outcome, {})
    )
    return {"source": name, "reason": reason, "message": str(error), **details, "row": row}


def prompt_of(row: Row) -> str | list[Message]:
    """The prompt of a row: `prompt` (text or messages), or Alpaca's `instruction` with its `input`.

    Raises:
        Reject: `no_prompt` where there is none or nothing in it, `bad_type` where it is neither
            text nor messages.
    """
    if "prompt" not in row and "instruction" in row:
        return _instruction_of(row)
    prompt: str | list[Message] = column_of(row, "prompt")
    if not isinstance(prompt, str):
        _check_messages(prompt)
    said = [prompt] if isinstance(prompt, str) else [message.get("content") for message in prompt]
    if all(isinstance(text, str) and not text.strip() for text in said):
        raise Reject("no_prompt", "`prompt` is empty")
    return prompt


def response_of(row: Row) -> str:
    """The answer in a row: `response`, or `output` or `completion` as other tools call it.

    Raises:
        Reject: `no_response` where there is none.
    """
    name = next((name for name in RESPONSE_COLUMNS if name in row), "response")
    value = column_of(row, name)
    if not isinstance(value, str):
        raise Reject("bad_type", f"`{name}` must be text, got {type(value).__name__}")
    return value


def column_of(row: Row, column: str) -> Any:
    """What a column holds.

    Raises:
        Reject: `no_<column>` where there is no such column, or nothing in it.
    """
    if value := row.get(column):
        return value
    if column in row:
        raise Reject(f"no_{column}", f"`{column}` is empty")
    near = nearest(column, row)
    hint = f"did you mean `{near}`?" if near else f"there is {', '.join(row) or 'nothing'}"
    raise Reject(f"no_{column}", f"no column `{column}`; {hint}")


class Output:
    """A file of rows that appears whole or not at all, with its rejects beside it.

    Lines go to `<path>.partial`; leaving the `with` block without an exception renames it, or makes
    Parquet of it where the path ends in `.parquet`. Without lines there is no file.

    Args:
        path: The file to be; its rejects go to `<path>.rejects.jsonl`.

    Raises:
        UserError: The disk is full, or the file cannot be written for another reason.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rejects = self.path.with_name(self.path.name + ".rejects.jsonl")
        self._files: dict[Path, IO[str]] = {}

    def write(self, row: Row) -> None:
        """Adds a row."""
        self._write(self.path, row)

    def reject(self, row: Row) -> None:
        """Adds a rejected row."""
        self._write(self.rejects, row)

    def __enter__(self) -> Output:
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.rejects, self.path):
                # Half a surrogate pair becomes `\ud83d`, which is what JSON calls it.
                self._files[path] = _partial(path).open(
                    "w", encoding="utf-8", errors="backslashreplace"
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with self._told():
                    for file in self._files.values():
                        file.flush()
                        os.fsync(file.fileno())
                    # The output last: where it stands, all stands.
                    for path, file in self._files.items():
                        if file.tell():
                            _whole(path).replace(path)
                        else:
                            path.unlink(missing_ok=True)
        finally:
            for path, file in self._files.items():
                with contextlib.suppress(OSError):  # what did not fit is given up with the file
                    file.close()
                _partial(path).unlink(missing_ok=True)

    def _write(self, path: Path, row: Row) -> None:
        with self._told():
            self._files[path].write(json.dumps(row, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; mend that and run the same command "
                "with `--resume`: finished calls are kept"
            ) from None


def refuse_existing(path: str | Path, *, allowed: bool) -> None:
    """Refuses to touch an output that exists unless a flag allows it.

    Raises:
        UserError: It exists and nothing was said about it.
    """
    if Path(path).exists() and not allowed:
        raise UserError(
            f"{path} exists; pass `--resume` to ask only for what is missing or failed, "
            "or `--overwrite` to start anew"
        )


async def map_rows(
    rows: Iterable[Named],
    build: Callable[[Row], Awaitable[Iterable[Row | Reject]]],
    output: str | Path,
    *,
    window: int = 1024,
    total: int | None = None,
) -> MapReport:
    """Writes what `build` makes of each row, in input order; rejects stand beside with reasons.

    A job that is stopped early writes the rows that are finished, also those that earlier runs
    have finished: once a model is stopped, its ledger goes on answering. All of the output is
    written anew from the ledger by each run, so that a run to the end leaves no trace of the stop.

    Args:
        rows: The input, read as it is needed: a name for messages, and the row or a `Bundle`.
        build: Makes the output rows of one input row, or raises `Reject` or `CallError`. A `Reject`
            among the rows it returns tells of one that could not be made; the row itself is
            dropped only if there is no other.
        output: The file to write, JSON Lines, or Parquet where its name ends so.
        window: Rows in work at the same time, which bounds memory.
        total: Number of rows, for the progress bar.

    Returns:
        How many rows were kept, and why others were dropped.

    Raises:
        Stopped: The job ended early and rows are missing; the others are written.
        UserError: A call cannot succeed, or the output cannot be written; nothing is written.
    """
    report = MapReport()
    stopped: Stopped | None = None
    ready: deque[tuple[str, Row, asyncio.Task[Made]]] = deque()

    async def work(row: Row) -> Made:
        try:
            return list(await build(row))
        except (Reject, CallError, Stopped) as error:
            return error.with_traceback(None)

    with Output(output) as file, tqdm(total=total, unit="row", disable=None) as bar:

        async def finish_first() -> None:
            nonlocal stopped
            name, row, task = ready.popleft()
            made = await task
            if isinstance(made, Stopped):
                stopped = made
            _record(name, row, made, file, report)
            bar.update()

        with _first_error():
            async with asyncio.TaskGroup() as group:
                for name, row in rows:
                    ready.append((name, row, group.create_task(work(row))))
                    if len(ready) >= window:
                        await finish_first()
                while ready:
                    await finish_first()
    if stopped is not None:
        rows_read = report.kept + report.dropped.total() + report.missing
        told = f"{stopped.why}: {report.missing} of {rows_read} rows are missing in {output}"
        raise Stopped(told, stopped.remedy, status=stopped.status)
    return report


def _record(name: str, row: Row, made: Made, file: Output, report: MapReport) -> None:
    members = members_of(name, row)
    if isinstance(made, Stopped):
        report.missing += len(members)
        return
    also: Row = {}
    if isinstance(made, list):
        failed = [new for new in made if isinstance(new, Reject)]
        if len(failed) < len(made) or not made:
            report.kept += len(members)
            for new in made:
                _record_part(name, row, new, file, report)
            return
        made = failed[0]
        if len(failed) > 1:
            also = {"also": [f"{error.reason}: {error}" for error in failed[1:]]}
    for member, its_row in members:
        rejected = {**reject_row(member, its_row, made), **also}
        report.drop(rejected)
        file.reject(rejected)


def _record_part(name: str, row: Row, made: Row | Reject, file: Output, report: MapReport) -> None:
    """What became of one of the outputs of a row that has several, and is kept."""
    if isinstance(made, Reject):
        report.partial[made.reason] += 1
        file.reject({**reject_row(name, row, made), "partial": True})
    else:
        report.written += 1
        file.write(made)


def _by_count(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Raises the first error of a task group in its place, as if there were no group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _instruction_of(row: Row) -> str:
    parts = {name: row.get(name) for name in ("instruction", "input")}
    for name, part in parts.items():
        if not isinstance(part, str | None):
            raise Reject("bad_type", f"`{name}` must be text, got {type(part).__name__}")
    prompt = "\n\n".join(filter(None, parts.values()))
    if not prompt.strip():
        raise Reject("no_prompt", "`instruction` is empty")
    return prompt


def _check_messages(prompt: Any) -> None:
    wrong = type(prompt).__name__
    if isinstance(prompt, list):
        others = (number for number, turn in enumerate(prompt, 1) if not _is_message(turn))
        if (number := next(others, None)) is None:
            return
        wrong = f"a list whose item {number} is no such message"
    raise Reject(
        "bad_type",
        f"`prompt` must be text or a list of messages with role and content, got {wrong}",
    )


def _is_message(value: Any) -> bool:
    """Whether a turn says something; one that calls tools may have null as its content."""
    if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
        return False
    return isinstance(value["content"], str | list) or bool(value.get("tool_calls"))


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _whole(path: Path) -> Path:
    """The finished lines of a file, in the format that its name calls for."""
    if path.suffix != ".parquet":
        return _partial(path)
    whole = path.with_name(path.name + ".whole")
    write_parquet(_partial(path), whole)
    return whole
