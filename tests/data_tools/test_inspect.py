"""What a file holds, in figures and in a terminal that foreign text cannot take over."""

import gzip
import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.data_tools.differences import Piece, differing
from alignment.data_tools.inspection import inspect_file, kind_of
from alignment.data_tools.terminal import show
from alignment.pages.printable import printable
from data_builders.overlap import EvalPrompts

PAIR = {"prompt": "Name a cat.", "chosen": "A black cat.", "rejected": "A black dog."}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
EVERY_FORMAT: list[dict[str, Any]] = [
    PAIR,
    {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "Go away"}]},
    {"prompt": "p", "responses": ["worst", "best", "mid"], "rewards": [0, 2, 1]},
    {"prompt": "p", "responses": [{"text": "a", "reward": 1, "model": "m"}, {"text": "b"}]},
    {"instruction": "p", "completions": [{"response": "a", "overall_score": 3}]},
    {"prompt": "p", "completion": "c", "label": False},
    {"prompt": "p", "completion": "c"},
    {"messages": CHAT},
    {"instruction": "p", "input": "i", "output": "o"},
    {"instruction": "p", "output": "o", "judgment": "too short"},
    {"instruction": "p", "output": "o", "judgment": None},
    {"prompt": "p", "responses": ["a", "b", "c"], "roles": [-1, 1, 0]},
    {"prompt": "p", "completion": "flagged here", "spans": [[0, 7]]},
    {"prompt": "p", "segments": [{"text": "one ", "score": 0}, {"text": "two", "score": 1}]},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(path: Path, width: int = 100, longest: int = 1200, **options: Any) -> str:
    """What a terminal without colours would show."""
    console = Console(file=io.StringIO(), width=width)
    show(inspect_file(path, **{"examples": 99, **options}), console, longest)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def coloured(path: Path, **changes: Any) -> str:
    """What goes to a terminal with 16 colours."""
    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system="standard", **changes
    )
    show(inspect_file(path), console, 1200)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_format_is_read_and_counted(tmp_path: Path):
    bad = [{"prompt": "p"}, {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "chosen": ""}]
    made = inspect_file(write(tmp_path / "rows.jsonl", EVERY_FORMAT + bad), examples=99)
    assert made.statistics.formats == {"pair": 2, "group": 4, "response": 7, "judged": 1}
    assert made.statistics.labels == {"undesirable": 1, "judged": 1, "no_fault": 1}
    assert made.unread.reasons == {"unknown_format": 1, "identical": 1, "empty_response": 1}
    assert made.unread.first["identical"].startswith("rows.jsonl:16: chosen and rejected are")
    assert [example.source for example in made.examples] == [
        f"rows.jsonl:{n}" for n in range(1, 15)
    ]


def test_the_schema_tells_the_kinds_of_values_with_their_counts(tmp_path: Path):
    made = inspect_file(write(tmp_path / "rows.jsonl", EVERY_FORMAT))
    assert made.columns["chosen"] == {"text": 1, "messages": 1}
    assert made.columns["rewards"] == {"list of number": 1}
    assert made.columns["responses"] == {"list of text": 2, "list of object": 1}
    assert made.columns["judgment"] == {"text": 1, "null": 1}
    assert made.columns["label"] == {"true or false": 1}
    assert kind_of([]) == "empty list"
    assert kind_of({}) == "object"
    assert kind_of([1, "a"]) == "list of several kinds"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz"])
def test_every_kind_of_file_that_training_reads_gives_the_same_figures(kind: str, tmp_path: Path):
    rows = [{**PAIR, "prompt": f"Name cat {n}."} for n in range(20)]
    path = tmp_path / f"rows.{kind}"
    if "json" in kind:
        lines = "\n".join(map(json.dumps, rows)) if "jsonl" in kind else json.dumps(rows)
        path.write_bytes(gzip.compress(lines.encode()) if "gz" in kind else lines.encode())
    elif kind == "csv":
        table = [",".join(PAIR), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(table))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    expected = inspect_file(write(tmp_path / "other.jsonl", rows))
    made = inspect_file(path)
    assert made.statistics == expected.statistics
    assert made.columns == expected.columns
    assert [example.prompt for example in made.examples] == [
        example.prompt for example in expected.examples
    ]


def test_examples_are_drawn_under_the_seed_and_in_the_order_of_the_file(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{**PAIR, "prompt": f"p{n}"} for n in range(50)])

    def drawn(seed: int) -> list[int]:
        return [int(example.prompt[1:]) for example in inspect_file(path, seed=seed).examples]

    assert drawn(0) == drawn(0) == sorted(drawn(0))
    assert len({number for seed in range(40) for number in drawn(seed)}) > 40
    assert inspect_file(path, examples=0).examples == []


def test_a_group_is_shown_by_its_rewards_with_the_best_first(tmp_path: Path):
    (example,) = inspect_file(write(tmp_path / "rows.jsonl", EVERY_FORMAT[2:3])).examples
    assert [(side.text, side.reward) for side in example.sides] == [
        *(("best", 2.0), ("mid", 1.0), ("worst", 0.0))
    ]


def test_sides_of_a_group_come_before_and_after_the_others(tmp_path: Path):
    (example,) = inspect_file(write(tmp_path / "rows.jsonl", EVERY_FORMAT[11:12])).examples
    assert [(side.label, side.text) for side in example.sides] == [
        *(("chosen", "b"), ("response", "c"), ("rejected", "a"))
    ]


def test_a_file_of_which_nothing_can_be_read_is_shown_all_the_same(tmp_path: Path):
    text = shown(write(tmp_path / "rows.jsonl", [{"promt": "p"}] * 3))
    assert "rows that training would reject: 3" in text
    assert "rows.jsonl:1: columns ['promt'] fit no known format" in " ".join(text.split())


def test_ties_and_judgments_are_told(tmp_path: Path):
    rows = [{"prompt": "p", "responses": ["a", "b", "c"], "rewards": [1, 1, 0]}, EVERY_FORMAT[9]]
    text = shown(write(tmp_path / "rows.jsonl", rows))
    assert "best 1, worst 0, no gap 0" in text
    assert "judgment" in text
    assert "too short" in text


def test_what_a_builder_left_beside_its_file_is_told(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [PAIR])
    lost = {"source": "in.jsonl:3", "reason": "parse_failed", "message": "no marker"}
    write(tmp_path / "rows.jsonl.rejects.jsonl", [lost, lost, {**lost, "partial": True}])
    report = {"builder": "clair", "version": "1", "kept": 1, "dropped": {"parse_failed": 2}}
    (tmp_path / "rows.jsonl.report.json").write_text(json.dumps(report))
    text = shown(path)
    assert "built by clair, version 1: kept 1 rows, dropped 2" in text
    assert "rows that the builder dropped: 2" in text
    assert "parse_failed  2  in.jsonl:3: no marker" in text


def test_evaluation_prompts_are_listed(tmp_path: Path):
    evaluation = EvalPrompts([write(tmp_path / "eval.jsonl", [{"prompt": "name a cat"}])])
    made = inspect_file(write(tmp_path / "rows.jsonl", [PAIR]), evaluation=evaluation)
    assert made.overlap == [{"row": "rows.jsonl:1", "how": "exact", "source": "eval.jsonl:1"}]


@pytest.mark.parametrize(
    ("first", "second", "one", "other"),
    [
        ("a b c", "a x c", [("a ", 0), ("b", 1), (" c", 0)], [("a ", 0), ("x", 1), (" c", 0)]),
        ("same", "same", [("same", 0)], [("same", 0)]),
        ("", "new", [], [("new", 1)]),
        ("cat", "cat.", [("cat", 0)], [("cat", 0), (".", 1)]),
    ],
)
def test_words_that_differ_are_set_apart(first: str, second: str, one: Any, other: Any):
    made = differing(first, second)
    expected = tuple([Piece(text, bool(flag)) for text, flag in side] for side in (one, other))
    assert made == expected


def test_the_pieces_of_a_text_add_up_to_it():
    first, second = "One, two\n three — four!", "Two,\tthree four five"
    for pieces, text in zip(differing(first, second), (first, second), strict=True):
        assert "".join(piece.text for piece in pieces) == text
        flags = [piece.differs for piece in pieces]
        assert all(one != other for one, other in pairwise(flags))


def test_the_differing_words_alone_are_coloured(tmp_path: Path):
    text = coloured(write(tmp_path / "rows.jsonl", [PAIR]))
    assert "\x1b[1;32mcat\x1b[0m" in text
    assert "\x1b[1;31mdog\x1b[0m" in text
    assert text.count("\x1b[1;3") == 2


def test_no_color_keeps_what_is_bold_and_drops_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_COLOR", "1")
    text = coloured(write(tmp_path / "rows.jsonl", [PAIR]))
    assert "\x1b[1mcat\x1b[0m" in text
    assert "\x1b[1;3" not in text


HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07 [red]not red[/red] \x9b31m \u202eright to left\r\x08 \ud83d [bold"
)


def test_foreign_text_is_shown_and_never_obeyed(tmp_path: Path):
    row = {key: f"{HOSTILE} {key}" for key in ("prompt", "chosen", "rejected")}
    row[HOSTILE] = "as a column"
    judged = {"instruction": HOSTILE, "output": HOSTILE, "judgment": HOSTILE}
    models = {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0], "models": [HOSTILE] * 2}
    lost = {"source": HOSTILE, "reason": HOSTILE, "message": HOSTILE}
    path = write(tmp_path / "rows.jsonl", [row, judged, models, {HOSTILE: 1}])
    write(tmp_path / "rows.jsonl.rejects.jsonl", [lost])
    report = {"builder": HOSTILE, "version": HOSTILE, "models": {HOSTILE: {"model": HOSTILE}}}
    (tmp_path / "rows.jsonl.report.json").write_text(json.dumps(report))
    text = shown(path, width=400)
    assert text.isprintable() or set(text) <= {c for c in text if c.isprintable()} | {"\n"}
    assert r"\x1b[2J\x1b]0;owned\x07 [red]not red[/red] \x9b31m \u202eright" in text
    assert r"\ud83d" in text
    text.encode()


def test_line_breaks_and_tabs_stay():
    assert printable("a\n\tb\x00\x7f") == "a\n\tb\\x00\\x7f"


def test_a_narrow_terminal_puts_one_side_under_the_other(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [PAIR])
    assert any("black cat" in line and "black dog" in line for line in shown(path).splitlines())
    narrow = shown(path, width=40).splitlines()
    assert max(map(len, narrow)) <= 40
    assert not any("cat." in line and "dog" in line for line in narrow)
    assert any("A black cat." in line for line in narrow)


def test_long_texts_are_cut_with_their_rest_told(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{**PAIR, "chosen": "word " * 1000}])
    assert "... 4,900 more characters" in shown(path, longest=100)
    assert "more characters" not in shown(path, longest=0)


def test_lengths_may_be_in_tokens(model_dir: Path, tmp_path: Path, capsys: Any):
    path = write(tmp_path / "rows.jsonl", [PAIR])
    dispatch(["data", "inspect", str(path), "--tokenizer", str(model_dir), "--json", "-"])
    made = json.loads(capsys.readouterr().out)
    assert made["unit"] == "tokens"
    assert 1 <= made["statistics"]["lengths"]["prompt"]["mean"] < len(PAIR["prompt"])


def test_figures_are_json_and_nothing_else_is_printed(tmp_path: Path, capsys: Any):
    path = write(tmp_path / "rows.jsonl", EVERY_FORMAT)
    dispatch(["data", "inspect", str(path), "--json", "-"])
    made = json.loads(capsys.readouterr().out)
    assert made["statistics"]["rows"] == len(EVERY_FORMAT)
    assert made["statistics"]["groups"]["groups"] == 4
    assert len(made["examples"]) == 3
    dispatch(["data", "inspect", str(path), "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == made
    assert "contrast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs `--file`"),
        (["none.jsonl"], "no such file"),
        (["empty.jsonl"], "the file holds no rows"),
        (["empty.jsonl", "--examples", "-1"], "`examples` is -1; it must be at least 0"),
        (["row.jsonl", "--tokenizer", "nowhere"], "cannot load the tokenizer `nowhere`"),
    ],
)
def test_bad_input_is_told_in_one_line(words: list[str], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    write(tmp_path / "row.jsonl", [PAIR])
    with pytest.raises(UserError, match=message):
        dispatch(["data", "inspect", *words])


@pytest.mark.slow
def test_a_pipe_gets_plain_text_and_may_be_closed_early(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{**PAIR, "chosen": "Ein Kätzchen 🐈"}] * 3000)
    command = f"{sys.executable} -m alignment data inspect {path} --examples 3000"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 3"],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    assert done.stdout.count(b"\n") == 3


def test_real_judgments_are_counted(shared_dir: Path):
    path = shared_dir / "data" / "judgments" / "cut_iter1.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the shared files")
    made = inspect_file(path)
    assert made.statistics.labels == {"no_fault": 713, "judged": 240}
    assert made.unread.reasons == {"judgment_error": 47}
    assert sum(1 for _ in read_rows(path)) == made.statistics.rows + made.unread.count
