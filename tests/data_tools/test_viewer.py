"""What the page of rows is given: every row once, with its texts cut where they differ."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.data_tools.differences import Piece
from alignment.data_tools.inspection import Example, Side
from alignment.data_tools.viewer import marked, write_viewer
from tests.data_tools.test_inspect import EVERY_FORMAT, PAIR, write


def rows_of(path: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows as the page's script reads them."""
    page = path.with_name("page.html")
    write_viewer(path, page, **{"most": 100, "seed": 0, **options})
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_rows_of_every_format_come_with_their_sides(tmp_path: Path):
    rows = rows_of(write(tmp_path / "rows.jsonl", EVERY_FORMAT))
    assert [row["name"] for row in rows] == [f"rows.jsonl:{n}" for n in range(1, 15)]
    pair, _, group = rows[:3]
    assert pair["state"] == "pair"
    assert [(side["label"], side["parts"]) for side in pair["sides"]] == [
        ("chosen", ["A black ", "cat", "."]),
        ("rejected", ["A black ", "dog", "."]),
    ]
    assert [(side["parts"], side["reward"]) for side in group["sides"]] == [
        (["best"], 2.0),
        (["", "mid"], 1.0),
        (["", "worst"], 0.0),
    ]
    assert [row["judgment"] for row in rows if row["judgment"]] == ["too short"]


def test_rows_that_are_lost_come_with_reason_message_and_text(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [dict(PAIR), {"promt": "p"}])
    rejects: list[dict[str, Any]] = [
        {"source": "in:7", "reason": "identical", "message": "the same", "row": {"prompt": "q"}},
        {"source": "in:8", "reason": "late", "message": "no time", "row": {}, "partial": True},
    ]
    write(path.with_name("rows.jsonl.rejects.jsonl"), rejects)
    kept, unread, dropped, part = rows_of(path)
    assert kept["lost"] is False
    assert (unread["state"], unread["lost"]) == ("training rejects: unknown_format", True)
    assert "fit no known format" in unread["message"]
    assert json.loads("".join(unread["sides"][0]["parts"])) == {"promt": "p"}
    assert (dropped["name"], dropped["state"]) == ("in:7", "builder dropped: identical")
    assert (dropped["message"], part["state"]) == ("the same", "part dropped: late")


def test_of_more_rows_so_many_are_drawn_which_the_page_says(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{**PAIR, "prompt": f"p{n}"} for n in range(50)])
    rows = rows_of(path, most=10, seed=3)
    assert len(rows) == 10
    assert rows == rows_of(path, most=10, seed=3) != rows_of(path, most=10, seed=4)
    page = html.unescape(path.with_name("page.html").read_text())
    assert "10 of 50 rows, drawn at random under seed 4" in page


def test_spaces_between_words_that_differ_are_marked_with_them():
    sides = [Side("chosen", "a big red cat"), Side("rejected", "a small blue cat")]
    chosen, rejected = marked(Example("s", "pair", "p", sides))
    assert chosen == [Piece("a ", False), Piece("big red", True), Piece(" cat", False)]
    assert rejected[1] == Piece("small blue", True)


def test_the_command_writes_the_page_beside_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, page = write(tmp_path / "rows.jsonl", [PAIR]), tmp_path / "out/rows.html"
    dispatch(["data", "inspect", str(path), "--html", str(page)])
    assert f"written to {page}" in capsys.readouterr().out
    assert page.is_file()
    dispatch(["data", "inspect", str(path), "--html", str(page), "--json", "-"])
    assert json.loads(capsys.readouterr().out)["statistics"]["rows"] == 1


def test_a_page_by_another_name_would_replace_data_and_is_refused(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [PAIR])
    with pytest.raises(UserError, match=r"ends in \.html"):
        dispatch(["data", "inspect", str(path), "--html", str(path)])
    with pytest.raises(UserError, match="`html_rows` is 0"):
        dispatch(["data", "inspect", str(path), "--html", "a.html", "--html-rows", "0"])
