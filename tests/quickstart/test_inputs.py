"""Prompts on both sides of the split, and servers that are asked before anything expensive."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.rows import prompt_of
from alignment.quickstart import world
from alignment.quickstart.inputs import (
    Server,
    check_servers,
    find_server,
    split_prompts,
    write_world,
)
from tests.llm.server import Answer, serve


def prompts_in(path: Path) -> list[str]:
    return [as_text(prompt_of(row)) for _, row in read_rows(path)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(folder: Path, model: Path, source: Path, seed: int = 0) -> tuple[list[str], list[str]]:
    split_prompts(folder, str(model), source, train_prompts=12, held_out_prompts=50, seed=seed)
    train, held_out = folder / "prompts/train.jsonl", folder / "prompts/held_out.jsonl"
    return prompts_in(train), prompts_in(held_out)


def test_no_held_out_set_of_words_is_demonstrated_or_trained_on(tmp_path: Path):
    write_world(tmp_path, demonstrations=200, train_prompts=50, held_out_prompts=40, seed=0)
    shown = set(prompts_in(tmp_path / "demonstrations.jsonl"))
    train = set(prompts_in(tmp_path / "prompts/train.jsonl"))
    held_out = set(prompts_in(tmp_path / "prompts/held_out.jsonl"))
    assert [len(train), len(held_out)] == [50, 40]
    assert len(shown) > 150
    for seen in shown | train:
        assert world.split_of(seen.partition(": ")[2].split()) == "train"
    for unseen in held_out:
        assert world.split_of(unseen.partition(": ")[2].split()) == "held_out"


def test_repeated_prompts_are_on_one_side_only(tmp_path: Path, model_dir: Path):
    rows = [{"prompt": f"Question {number % 20}?"} for number in range(60)]
    train, held_out = split(tmp_path, model_dir, write(tmp_path / "prompts.jsonl", rows))
    assert len(train) == 12
    assert len(held_out) == 4
    assert len({*train, *held_out}) == 16


def test_the_seed_chooses_the_side(tmp_path: Path, model_dir: Path):
    source = write(tmp_path / "p.jsonl", [{"prompt": f"Question {n}?"} for n in range(30)])
    assert split(tmp_path / "a", model_dir, source) == split(tmp_path / "b", model_dir, source)
    assert split(tmp_path / "a", model_dir, source) != split(tmp_path / "c", model_dir, source, 1)


def test_text_becomes_a_message_where_the_model_has_a_chat_template(
    tmp_path: Path, model_dir: Path
):
    source = write(tmp_path / "p.jsonl", [{"prompt": f"Question {n}?"} for n in range(10)])
    split(tmp_path, model_dir, source)
    for _, row in read_rows(tmp_path / "prompts/train.jsonl"):
        assert row["prompt"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}] * 9, "1 distinct prompts are too few to split; give 5"),
        ([{"prompt": "a"}, {"promt": "b"}], "p.jsonl:2: no column `prompt`; did you mean `promt`?"),
    ],
)
def test_prompts_that_cannot_be_split_are_told(
    tmp_path: Path, model_dir: Path, rows: list[dict[str, Any]], message: str
):
    with pytest.raises(UserError) as caught:
        split(tmp_path, model_dir, write(tmp_path / "p.jsonl", rows))
    assert message in str(caught.value)


def test_the_only_model_of_a_server_needs_no_name():
    with serve([Answer()], models=["judge-1"]) as server:
        assert find_server(None, server.url, None) == Server("judge-1", server.url)
    with (
        serve([Answer()], models=["one", "two"]) as server,
        pytest.raises(UserError, match="has one, two: name one"),
    ):
        find_server(None, server.url, None)


def test_a_server_is_asked_once_and_may_be_cut_off():
    with serve([Answer("Hel", finish_reason="length")]) as server:
        check_servers([Server("tiny", server.url)], None)
        assert len(server.bodies) == 1


def test_a_server_that_does_not_answer_is_told_in_one_line():
    gone = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"127.0.0.1:9.*running\?"):
        find_server(None, gone, None)
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1:9/v1 .*running\?"):
        check_servers([Server("tiny", gone)], None)


def test_a_server_that_cannot_list_its_models_asks_for_a_name():
    """`transformers serve` answers 500 where the machine has no cache of models, this one 501."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(
            UserError, match=r"answered 501\); name the one to ask: `--judge-model`"
        ):
            find_server(None, url, None)
        server.shutdown()


def test_a_server_that_lacks_the_model_is_told_with_the_nearest_it_has():
    missing = Answer(status=404, error={"error": {"message": "no such model: tinny"}})
    with (
        serve([missing]) as server,
        pytest.raises(UserError, match="has no model `tinny`; did you mean `tiny`"),
    ):
        check_servers([Server("tinny", server.url)], None)


def test_a_server_of_something_else_is_told():
    with (
        serve([Answer(raw=b'{"hello": "world"}')]) as server,
        pytest.raises(UserError, match="does not answer as an OpenAI-compatible API"),
    ):
        check_servers([Server("tiny", server.url)], None)
