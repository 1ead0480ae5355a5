"""Rows come back from Parquet as they went in, whatever the types of their columns."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment.core.parquet import write_parquet
from alignment.core.rows import read_rows

MESSAGES = [{"role": "user", "content": "Hi"}]


def there_and_back(folder: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    source, target = folder / "rows.jsonl", folder / "rows.parquet"
    source.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
        errors="backslashreplace",
    )
    write_parquet(source, target)
    return [row for _, row in read_rows(target)]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "p", "responses": ["a", "b"], "rewards": [1.0, 0.5]}],
        [{"prompt": MESSAGES, "chosen": MESSAGES, "n": 1}, {"prompt": [], "chosen": [], "n": 2}],
        [{"prompt": "p", "note": None}, {"prompt": "q", "note": None}],
        [{"prompt": "p"}, {"prompt": MESSAGES}],
        [{"m": {"a": 1}}, {"m": {"a": "one"}}, {"m": {"a": [1]}}],
        [{"m": {}}, {"m": {}}],
        [{"m": {"inner": {}, "list": [{}]}}],
        [{"n": 2**70}, {"n": 1}],
        [{"m": {"a": True}}, {"m": {"a": None}}],
        [{"meta": [1, "two", None, {"three": 3}]}],
    ],
)
def test_rows_come_back(rows: list[dict[str, Any]], tmp_path: Path):
    assert there_and_back(tmp_path, *rows) == rows


def test_a_type_that_only_a_later_batch_has_counts_too(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"a": None, "b": 1} for _ in range(2500)]
    rows[2200] = {"a": "late", "b": 1.5}
    assert there_and_back(tmp_path, *rows) == rows
    rows[2300] = {"a": ["later"], "b": "text"}
    assert there_and_back(tmp_path, *rows) == rows


def test_columns_that_a_row_lacks_are_null(tmp_path: Path):
    rows = there_and_back(tmp_path, {"a": 1, "m": {"x": 1}}, {"b": 2, "m": {"y": 2}})
    assert rows == [
        {"a": 1, "b": None, "m": {"x": 1, "y": None}},
        {"a": None, "b": 2, "m": {"x": None, "y": 2}},
    ]


def test_half_a_surrogate_pair_becomes_the_mark_of_what_cannot_be_shown(tmp_path: Path):
    (row,) = there_and_back(tmp_path, {"a": "x\ud83dy", "b": "\\ud83d stays", "c": "😀"})
    assert row == {"a": "x\ufffdy", "b": "\\ud83d stays", "c": "😀"}


def test_nothing_is_left_where_writing_fails(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("{broken")
    with pytest.raises(json.JSONDecodeError):
        write_parquet(tmp_path / "rows.jsonl", tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def test_datasets_reads_it_and_we_read_what_datasets_writes(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "m": {"a": 1}},
        {"prompt": MESSAGES, "m": {"a": "one"}},
    ]
    there_and_back(tmp_path, *rows)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert [*loaded] == rows
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache")
    )["train"]
    loaded.to_parquet(tmp_path / "theirs.parquet")
    assert [row for _, row in read_rows(tmp_path / "theirs.parquet")] == rows
