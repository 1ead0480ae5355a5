"""Builders run on a few rows, with programs of a test in the place of models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.__main__ import dispatch
from alignment.core.rows import read_rows
from alignment.llm.rows import Row


def write(path: Path, rows: Sequence[Row]) -> Path:
    """A JSON Lines file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(folder: Path, name: str, rows: Sequence[Row], *argv: object) -> list[dict[str, Any]]:
    """What `alignment build NAME` makes of rows; it stands in `out.jsonl` of the folder."""
    source = write(folder / "in.jsonl", rows)
    words = ["build", name, "--input", source, "--output", folder / "out.jsonl", *argv]
    dispatch([str(word) for word in words])
    return [row for _, row in read_rows(folder / "out.jsonl")]


def rejects(folder: Path) -> list[dict[str, Any]]:
    """The rejects beside `out.jsonl`."""
    return [row for _, row in read_rows(folder / "out.jsonl.rejects.jsonl")]


def reasons(folder: Path) -> list[str]:
    """Why rows were rejected, in their order."""
    return [row["reason"] for row in rejects(folder)]


def report(folder: Path) -> dict[str, Any]:
    """The report beside `out.jsonl`."""
    loaded: dict[str, Any] = json.loads((folder / "out.jsonl.report.json").read_text())
    return loaded
