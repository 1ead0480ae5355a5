"""A stronger model's answer against the model's own: pairs, rejects, training."""

from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.prompts import as_messages
from alignment.llm.protocol import CallError, Reply, Request
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.conftest import NO, YES
from tests.data_builders.running import build, reasons, report, write
from tests.llm.real_server import Served
from tests.llm.server import Answer, Body, last_words


def stronger(request: Request) -> str | Reply:
    """Shouts the last message, or does what it asks for."""
    words = str(as_messages(request.prompt)[-1]["content"])
    if words == "refuse":
        raise CallError("refused", "no")
    return Reply("half of", "length") if words == "go on" else words.upper()


MODEL = ("--model", f"program:{__name__}.stronger")


def made(folder: Path, rows: list[dict[str, Any]], *argv: str) -> list[dict[str, Any]]:
    return build(folder, "stronger_preferred", rows, *MODEL, *argv)


def test_the_stronger_answer_is_chosen_and_the_own_one_rejected(tmp_path: Path):
    (pair,) = made(tmp_path, [{"prompt": "greet me", "response": "hm", "model": "small"}])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("greet me", "GREET ME", "hm")
    meta = pair["meta"]
    assert (meta["builder"], meta["version"]) == ("stronger_preferred", "1")
    assert meta["models"] == {"chosen": MODEL[1], "rejected": "small"}
    assert meta["on_policy"] == {"chosen": False, "rejected": True}
    assert meta["sampling"] == {"temperature": 1.0, "max_tokens": 2048, "seed": 0}


def test_rows_without_a_pair_are_listed_with_their_reason(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": "fine", "response": "r"},
        {"prompt": "Same", "response": " SAME\n"},
        {"prompt": "refuse", "response": "r"},
        {"prompt": "go on", "response": "r"},
        {"prompt": "cut", "response": "r", "finish_reason": "length"},
        {"prompt": "none", "response": ""},
        {"prompt": [{"role": "assistant", "content": "x"}], "response": "r"},
    ]
    assert len(made(tmp_path, rows)) == 1
    assert reasons(tmp_path) == [
        *("identical", "refused", "truncated", "truncated", "no_response"),
        "prompt_ends_with_assistant",
    ]
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `response`.*did you mean `responze`"):
        made(tmp_path, [{"prompt": "p", "responze": "r"}])


def test_nothing_kept_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing came out of .*identical"):
        made(tmp_path, [{"prompt": "a", "response": "A"}])
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_its_pairs_train(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        return Answer(f"The answer to {last_words(body)}.")

    rows = [{"prompt": f"question {i}", "response": f"Own {i}"} for i in range(40)]
    words = ("build", "stronger_preferred", "--input", write(tmp_path / "in.jsonl", rows))
    assert len(survives_a_kill(tmp_path, script, *words)) == 40
    trains(tmp_path, tmp_path / "killed" / "out.jsonl", "apo", kwargs={"variant": "down"})


@pytest.mark.slow
def test_a_real_server_answers(tmp_path: Path, yes_or_no: Served):
    rows = [{"prompt": f"question {i}", "response": "Hm."} for i in range(8)]
    made = builds_on(
        *(yes_or_no, tmp_path, "build", "stronger_preferred", "--max-tokens", 8),
        *("--input", write(tmp_path / "in.jsonl", rows)),
    )
    assert {row["chosen"] for row in made} == {YES, NO}
    assert {row["rejected"] for row in made} == {"Hm."}
