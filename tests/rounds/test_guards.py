"""No evaluation prompt enters a round, in whatever shape."""

import json
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.rounds.guards import shuffled, write_admitted, write_pool

LONG = "Tell me in plain words how a sailing boat can go against the wind at all, please."


def prompts(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return prompts(tmp_path / "held_out.jsonl", LONG, "Who was Ada Lovelace?")


@pytest.mark.parametrize(
    ("prompt", "how"),
    [
        (LONG, "exact"),
        ("who was ADA lovelace", "exact"),
        (f"First an aside about the sea. {LONG[5:]} Then a joke.", "13-gram"),
        (LONG.replace("boat", "boats"), "near"),
    ],
)
def test_an_evaluation_prompt_is_kept_out_of_a_rounds_data(
    tmp_path: Path, held_out: Path, prompt: str, how: str
):
    data = prompts(tmp_path / "data.jsonl", "Who was Emmy Noether?", prompt)
    write_admitted(tmp_path / "out.jsonl", data, held_out)
    assert [row["prompt"] for _, row in read_rows(tmp_path / "out.jsonl")] == [
        "Who was Emmy Noether?"
    ]
    ((_, rejected),) = read_rows(tmp_path / "out.jsonl.rejects.jsonl")
    assert rejected["reason"] == "evaluation_prompt"
    assert how in rejected["message"]


def test_no_more_rows_are_admitted_than_wanted_and_the_others_are_listed(
    tmp_path: Path, held_out: Path
):
    data = prompts(tmp_path / "data.jsonl", "one", LONG, "two", "three")
    write_admitted(tmp_path / "out.jsonl", data, held_out, most=2)
    kept = [row["prompt"] for _, row in read_rows(tmp_path / "out.jsonl")]
    assert kept == ["one", "two"]
    rejects = [row["reason"] for _, row in read_rows(tmp_path / "out.jsonl.rejects.jsonl")]
    assert rejects == ["evaluation_prompt", "over_quota"]


def test_a_row_without_a_prompt_is_listed_like_any_other(tmp_path: Path, held_out: Path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"promt": "one"}\n{"prompt": ""}\n{"prompt": "two"}\n')
    write_admitted(tmp_path / "out.jsonl", data, held_out)
    assert [row["prompt"] for _, row in read_rows(tmp_path / "out.jsonl")] == ["two"]
    rejects = [row for _, row in read_rows(tmp_path / "out.jsonl.rejects.jsonl")]
    assert [(row["source"], row["reason"]) for row in rejects] == [
        ("data.jsonl:1", "no_prompt"),
        ("data.jsonl:2", "no_prompt"),
    ]


def test_data_of_evaluation_prompts_alone_is_refused(tmp_path: Path, held_out: Path):
    with pytest.raises(UserError, match=r"evaluation_prompt \(1 rows\): d\.jsonl:1: the prompt is"):
        write_admitted(tmp_path / "out.jsonl", prompts(tmp_path / "d.jsonl", LONG), held_out)


def test_the_pool_has_each_prompt_once_in_the_models_form(
    tmp_path: Path, held_out: Path, model_dir: Path
):
    source = prompts(tmp_path / "prompts.jsonl", "one", "two", "one", LONG, "three")
    write_pool(tmp_path / "pool.jsonl", source, held_out, str(model_dir), seed=0)
    found = [row["prompt"] for _, row in read_rows(tmp_path / "pool.jsonl")]
    assert sorted(prompt[0]["content"] for prompt in found) == ["one", "three", "two"]
    assert {prompt[0]["role"] for prompt in found} == {"user"}


def test_a_prompt_more_moves_no_other():
    texts = [f"prompt {number}" for number in range(20)]
    order = shuffled(texts, seed=1)
    assert order != texts
    assert [text for text in shuffled([*texts, "another"], seed=1) if text in texts] == order
    assert order != shuffled(texts, seed=2)
