"""Rows from local files, one at a time, each with a name for messages: `pairs.jsonl:17`."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from alignment.cli import UserError, nearest
from alignment.core.parquet import read_parquet

Row = dict[str, Any]
R = TypeVar("R", bound=Mapping[str, Any])

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")


def read_rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Reads a file of rows.

    Args:
        path: `.jsonl`, `.json` (a list of objects), both also as `.gz`; `.csv`; `.parquet`.

    Yields:
        A name of the row and the row.

    Raises:
        UserError: The file is missing, of an unknown kind, or broken; the line is named.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent
        near = nearest(path.name, [p.name for p in folder.iterdir()]) if folder.is_dir() else None
        hint = f"; did you mean `{folder / near}`?" if near else ""
        raise UserError(f"no such file: {path}{hint}")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in _READERS:
        raise UserError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
    count = 0
    try:
        for named in _READERS[kind](path):
            yield named
            count += 1
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise UserError(
            f"{path}: damaged after row {count} ({error}); mend it or fetch it again"
        ) from None


def require_columns(
    rows: Iterable[tuple[str, R]], *needed: Sequence[str], look_at: int = 100
) -> Iterator[tuple[str, R]]:
    """The same rows, after a look at the first of them: a wrong file is told before any work.

    Args:
        rows: As `read_rows` gives them.
        *needed: Columns that rows must have; of several names in one entry, any will do.
        look_at: How many rows are looked at.

    Raises:
        UserError: None of them has a column that is needed; the nearest one there is named.
    """
    rows = iter(rows)
    first = list(islice(rows, look_at))
    for names in needed:
        if first and not any(name in row for _, row in first for name in names):
            there = list(dict.fromkeys(column for _, row in first for column in row))
            near = next((near for name in names if (near := nearest(name, there))), None)
            hint = (
                f"did you mean `{near}`?" if near else f"there is {', '.join(there) or 'nothing'}"
            )
            wanted = " or ".join(f"`{name}`" for name in names)
            raise UserError(f"{first[0][0]}: no column {wanted}; {hint}")
    return chain(first, rows)


def is_local(path: str) -> bool:
    """Whether a data set's name is meant as a file here rather than an id on the Hub."""
    return path.endswith(SUFFIXES) or Path(path).exists()


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _read_lines(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield (
                        f"{path.name}:{number}",
                        _object(json.loads(line.rstrip()), f"{path}:{number}"),
                    )
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: broken JSON ({error.msg} at column {error.colno}); "
            "mend or delete the line"
        ) from None


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with _open(path) as file:
            rows = json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: broken JSON ({error.msg} at column {error.colno})"
        ) from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, got a {type(rows).__name__}")
    for number, row in enumerate(rows):
        yield f"{path.name}[{number}]", _object(row, f"{path}[{number}]")


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)  # the default is less than some responses have
    with _open(path) as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}:{reader.line_num}: more values than columns; quote values with commas"
                )
            yield f"{path.name}:{reader.line_num}", cast(Row, row)


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow

    try:
        for number, row in enumerate(read_parquet(path)):
            yield f"{path.name}[{number}]", row
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from None


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with columns, got a {type(row).__name__}")
    return row


_READERS = {
    "jsonl": _read_lines,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
