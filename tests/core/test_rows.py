"""Rows come from files of every kind with a name each, and a broken file is one clear line."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from alignment.cli import UserError
from alignment.core.rows import is_local, read_rows, require_columns

ROWS: list[dict[str, Any]] = [{"prompt": "é?", "n": 1}, {"prompt": "b\nc", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def complaint(path: Path) -> str:
    """What reading a file to its end is refused with: one line that names the file."""
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_are_read_with_their_number(tmp_path: Path, name: str, mark: bytes):
    content = mark + LINES.replace(b"\n", b"\n\n", 1)
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert list(read_rows(path)) == [(f"{name}:1", ROWS[0]), (f"{name}:3", ROWS[1])]


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_a_list_of_objects_is_read_with_their_place(tmp_path: Path, name: str):
    content = json.dumps(ROWS, indent=1).encode()
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert list(read_rows(path)) == [(f"{name}[0]", ROWS[0]), (f"{name}[1]", ROWS[1])]


def test_csv_is_read_with_the_line_a_row_ends_on(tmp_path: Path):
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "n"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert list(read_rows(path)) == [
        ("rows.csv:2", {"prompt": "é?", "n": "1"}),
        ("rows.csv:4", {"prompt": "b\nc", "n": "2"}),
    ]


def test_a_field_of_csv_may_be_as_long_as_a_response(tmp_path: Path):
    path = write(tmp_path / "rows.csv", b"prompt\n" + b"x" * 200_000 + b"\n")
    ((_, row),) = read_rows(path)
    assert len(row["prompt"]) == 200_000


def test_parquet_is_read_with_nested_columns(tmp_path: Path):
    rows = [{"prompt": [{"role": "user", "content": "a"}], "reward": 0.5}, {"prompt": [], "n": 1}]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_rows(path)) == [
        ("rows.parquet[0]", {"prompt": [{"role": "user", "content": "a"}], "reward": 0.5}),
        ("rows.parquet[1]", {"prompt": [], "reward": None}),
    ]


def test_rows_come_one_at_a_time(tmp_path: Path):
    """The broken third line is not met while the first two are asked for."""
    rows = read_rows(write(tmp_path / "rows.jsonl", LINES + b"{broken\n"))
    assert [next(rows)[1], next(rows)[1]] == ROWS
    with pytest.raises(UserError, match=r"rows\.jsonl:3: broken JSON"):
        next(rows)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path):
    write(tmp_path / "pairs.jsonl", LINES)
    message = complaint(tmp_path / "pair.jsonl")
    assert message.startswith("no such file")
    assert str(tmp_path / "pairs.jsonl") in message


def test_a_missing_file_in_a_missing_folder_suggests_nothing(tmp_path: Path):
    assert "did you mean" not in complaint(tmp_path / "nowhere" / "pairs.jsonl")


def test_a_folder_is_no_file(tmp_path: Path):
    assert complaint(tmp_path).startswith("no such file")


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path):
    message = complaint(write(tmp_path / "rows.txt", LINES))
    assert ".jsonl.gz" in message
    assert ".parquet" in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.jsonl", LINES + b'{"prompt": "x"\n', "rows.jsonl:3: broken JSON"),
        ("rows.jsonl", LINES + b"[1, 2]\n", "rows.jsonl:3: expected an object"),
        ("rows.json", b'[{"a": 1},\n {"a": }]', "rows.json:2: broken JSON"),
        ("rows.json", b'{"data": []}', "expected a list of objects, got a dict"),
        ("rows.json", b'[{"a": 1}, 2]', "rows.json[1]: expected an object"),
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", "rows.csv:3: more values than columns"),
        ("rows.parquet", b"PAR1 and then nothing", "not a Parquet file"),
        ("rows.jsonl.gz", LINES, "after row 0 (Not a gzipped file"),
        ("rows.json.gz", b"[]", "after row 0 (Not a gzipped file"),
        ("rows.jsonl", LINES + b'{"prompt": "\xe9"}\n', "codec can't decode"),
        ("rows.json", b'[{"prompt": "\xe9"}]', "codec can't decode"),
        ("rows.csv", b"a,b\n\xe9,2\n", "codec can't decode"),
    ],
)
def test_a_broken_file_is_named_with_the_place(
    tmp_path: Path, name: str, content: bytes, says: str
):
    assert says in complaint(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "checksum"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, name: str, damage: str):
    numbers = [{"n": i * 2654435761 % 2**32} for i in range(3000)]
    lines = "\n".join(map(json.dumps, numbers))
    whole = gzip.compress((lines if "jsonl" in name else json.dumps(numbers)).encode())
    half = len(whole) // 2
    broken = {
        "cut": whole[:half],
        "flipped": whole[:half] + bytes(b ^ 0xFF for b in whole[half : half + 64]) + whole[half:],
        "checksum": whole[:-8] + bytes(4) + whole[-4:],
    }
    assert "mend" in complaint(write(tmp_path / name, broken[damage]))


def test_a_parquet_file_damaged_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"n": [str(i * 2654435761 % 2**32) for i in range(5000)]})
    pyarrow.parquet.write_table(table, path)
    raw = bytearray(path.read_bytes())
    raw[1000:1100] = b"\xff" * 100
    assert "damaged after row 0" in complaint(write(path, bytes(raw)))


def test_a_name_is_local_when_it_looks_like_a_file_or_is_there(tmp_path: Path):
    assert is_local("pairs.jsonl")
    assert is_local(str(tmp_path))
    assert not is_local("trl-lib/ultrafeedback_binarized")


def test_a_column_that_the_first_rows_lack_is_told_with_the_nearest_there_is():
    rows: list[tuple[str, dict[str, Any]]] = [
        ("in.jsonl:1", {"promt": "p"}),
        ("in.jsonl:2", {"promt": "q", "note": 1}),
    ]
    with pytest.raises(UserError) as caught:
        require_columns(rows, ["prompt", "instruction"])
    assert str(caught.value) == (
        "in.jsonl:1: no column `prompt` or `instruction`; did you mean `promt`?"
    )
    with pytest.raises(UserError, match="no column `zebra`; there is promt, note"):
        require_columns(rows, ["zebra"])


def test_one_of_several_names_in_one_of_the_first_rows_will_do_and_no_row_is_lost():
    rows: list[tuple[str, dict[str, Any]]] = [
        (str(n), {"output": "x"} if n == 2 else {}) for n in range(5)
    ]
    assert list(require_columns(iter(rows), ["response", "output"], look_at=3)) == rows
    assert list(require_columns(iter(rows[:0]), ["prompt"])) == []
