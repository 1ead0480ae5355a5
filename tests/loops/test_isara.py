"""ISARA: examples beside questions, and answers that agree."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.rows import Output
from alignment.loops.isara import write_agreed, write_beside
from alignment.rounds.loop import load_loop


def file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_nearest_examples_stand_before_a_question(tmp_path: Path, model_dir: Path):
    known: list[dict[str, Any]] = [
        {"prompt": [user("the user asked")], "completion": [{"role": "assistant", "content": "A"}]},
        {"prompt": "zzzzzz", "completion": "B"},
        {"prompt": [user("the user said")], "completion": [{"role": "assistant", "content": "C"}]},
    ]
    examples = file(tmp_path / "known.jsonl", known)
    questions = file(tmp_path / "questions.jsonl", [{"prompt": [user("the user asked")]}])
    with Output(tmp_path / "out.jsonl") as output:
        write_beside(output, questions, [examples], model_dir, count=2)
    ((_, row),) = read_rows(tmp_path / "out.jsonl")
    assert row["question"] == [user("the user asked")]
    turns = [turn["content"] for turn in row["prompt"]]
    assert turns[2:] == ["the user asked", "A", "the user asked"]
    assert len(turns) == 5


def test_examples_without_an_answer_are_rejected(tmp_path: Path, model_dir: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "b", "completion": []},
        {"prompt": "c", "completion": "C"},
    ]
    questions = file(tmp_path / "questions.jsonl", [{"prompt": "q"}])
    with Output(tmp_path / "out.jsonl") as output:
        write_beside(output, questions, [file(tmp_path / "known.jsonl", rows)], model_dir, count=2)
    ((_, row),) = read_rows(tmp_path / "out.jsonl")
    assert [turn["content"] for turn in row["prompt"]] == ["c", "C", "q"]
    rejects = [row for _, row in read_rows(tmp_path / "out.jsonl.rejects.jsonl")]
    assert [(row["source"], row["reason"]) for row in rejects] == [
        ("known.jsonl:1", "no_response"),
        ("known.jsonl:2", "no_completion"),
    ]


def test_an_answer_is_kept_where_enough_agree_under_its_plain_question(tmp_path: Path):
    def answers(question: str, *texts: str, reason: str = "stop") -> list[dict[str, Any]]:
        beside = [user("shown"), {"role": "assistant", "content": "so"}, user(question)]
        common = {"question": [user(question)], "prompt": beside, "finish_reason": reason}
        return [{**common, "response": text} for text in texts]

    rows = answers("p", "a", "b", "a ", "a") + answers("q", "a", "b", "c", "d")
    rows += answers("r", "", " ") + answers("s", "a", reason="length")
    with Output(tmp_path / "out.jsonl") as output:
        write_agreed(output, file(tmp_path / "answers.jsonl", rows), agreement=0.5)
    ((_, row),) = read_rows(tmp_path / "out.jsonl")
    assert row["prompt"] == [user("p")]
    assert row["completion"] == [{"role": "assistant", "content": "a"}]
    assert row["meta"]["agreement"] == 0.75
    assert row["meta"]["generation_prompt"][0] == user("shown")
    rejects = [row for _, row in read_rows(tmp_path / "out.jsonl.rejects.jsonl")]
    assert [row["reason"] for row in rejects] == ["disagreement", "empty", "truncated"]


def test_seeds_that_are_missing_or_too_few_are_told_before_any_work(tmp_path: Path):
    with pytest.raises(UserError, match="needs `--seeds`"):
        load_loop("isara", {})
    seeds = tmp_path / "seeds.jsonl"
    with pytest.raises(UserError, match="no such file of seeds"):
        load_loop("isara", {"seeds": str(seeds)}).check(rounds=1)
    file(seeds, [{"prompt": "p", "completion": "c"}])
    with pytest.raises(UserError, match="has 1 rows, fewer than 2"):
        load_loop("isara", {"seeds": str(seeds)}).check(rounds=1)
