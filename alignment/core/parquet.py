"""Rows as Parquet: written from JSON Lines a batch at a time, and read back as they were.

A column whose values are of several types, such as text in some rows and messages in others, is
stored as JSON, which `datasets` reads back as its feature `Json`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_BATCH = 2000
"""Rows in memory at a time, and in a row group."""
_HALF_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}")
"""Half a surrogate pair as JSON writes it, which UTF-8 has no bytes for."""


def write_parquet(source: Path, target: Path) -> None:
    """Writes the rows of a JSON Lines file as Parquet.

    Args:
        source: Read twice: for the types of the columns, and for their values.
        target: Removed again where writing fails.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([*_types(source).items()])
    try:
        with pyarrow.parquet.ParquetWriter(target, schema) as writer:
            for rows in _batches(source):
                columns = [_column(rows, field.name, field.type) for field in schema]
                writer.write_table(pyarrow.table(columns, schema=schema))
        with target.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, columns of JSON as values.

    Raises:
        pyarrow.ArrowInvalid: The file is no Parquet file.
    """
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    coded = [field for field in file.schema_arrow if _holds_json(field.type)]
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield {**row, **{field.name: _decoded(row[field.name], field.type) for field in coded}}


def _batches(source: Path) -> Iterator[list[dict[str, Any]]]:
    with source.open(encoding="utf-8") as file:
        while lines := [*islice(file, _BATCH)]:
            yield [json.loads(_HALF_PAIR.sub(r"\1\\ufffd", line)) for line in lines]


def _types(source: Path) -> dict[str, Any]:
    """Column -> its Arrow type over all rows."""
    import pyarrow

    kinds: dict[str, Any] = {}
    for rows in _batches(source):
        for name in dict.fromkeys(name for row in rows for name in row):
            found = _type([row.get(name) for row in rows])
            kinds[name] = _both(kinds[name], found) if name in kinds else found
    return {name: pyarrow.json_() if kind is None else kind for name, kind in kinds.items()}


def _type(values: list[Any]) -> Any:
    """The Arrow type that holds all values as they are, None where only JSON does."""
    import pyarrow

    try:
        kind = pyarrow.array(values).type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        return None
    return None if _has_empty_struct(kind) else kind


def _both(one: Any, other: Any) -> Any:
    import pyarrow

    if one is None or other is None:
        return None
    schemas = [pyarrow.schema([("column", kind)]) for kind in (one, other)]
    try:
        unified = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return None
    return unified.field("column").type


def _column(rows: list[dict[str, Any]], name: str, kind: Any) -> Any:
    import pyarrow

    values = [row.get(name) for row in rows]
    if not isinstance(kind, pyarrow.JsonType):
        return pyarrow.array(values, type=kind)
    texts = [None if value is None else json.dumps(value) for value in values]
    return pyarrow.ExtensionArray.from_storage(kind, pyarrow.array(texts, pyarrow.string()))


def _has_empty_struct(kind: Any) -> bool:
    """Whether a type holds an object without fields, which Parquet cannot store."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return not kind.num_fields or any(_has_empty_struct(field.type) for field in kind)
    return pyarrow.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _holds_json(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return any(_holds_json(field.type) for field in kind)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _holds_json(kind.value_type)
    return isinstance(kind, pyarrow.JsonType)


def _decoded(value: Any, kind: Any) -> Any:
    import pyarrow

    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if pyarrow.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    return [_decoded(item, kind.value_type) for item in value]
