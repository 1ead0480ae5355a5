"""Evaluation prompts among the prompts of a data set."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from data_builders.overlap import EvalPrompts

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def prompts(folder: Path, *rows: dict[str, Any]) -> EvalPrompts:
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalPrompts([path])


def test_case_punctuation_and_white_space_hide_nothing(tmp_path: Path):
    known = prompts(tmp_path, {"prompt": "What is 2 + 2?"}, {"instruction": "Name a cat."})
    assert known.count == 2
    assert known.find("what  is 2+2") == ("exact", "eval.jsonl:1")
    assert known.find("NAME a cat!") == ("exact", "eval.jsonl:2")
    assert known.find("Name a dog.") is None


def test_thirteen_words_in_a_row_are_too_many_and_twelve_are_not(tmp_path: Path):
    known = prompts(tmp_path, {"prompt": LONG})
    words = LONG.split()
    assert known.find("Say: " + ", ".join(words[:13]) + " and so on") == ("13-gram", "eval.jsonl:1")
    assert known.find(" ".join([*words[:12], "and", *words[12:]])) is None


def test_every_turn_of_the_user_counts_and_no_other(tmp_path: Path):
    known = prompts(tmp_path, {"turns": ["Begin a story.", "Now end it."]})
    talk = [
        {"role": "system", "content": "Begin a story."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Now end it."},
    ]
    assert known.find(talk) is None
    assert known.find([*talk, {"role": "user", "content": "now end it"}]) is not None


def test_a_prompt_without_words_is_like_no_other(tmp_path: Path):
    known = prompts(tmp_path, {"prompt": "?!"}, {"prompt": "Yes?"})
    assert known.find("...") is None


def test_a_file_without_prompts_is_told_with_the_nearest_column(tmp_path: Path):
    with pytest.raises(UserError, match=r"eval\.jsonl:1: no column .*did you mean `promts`"):
        prompts(tmp_path, {"promts": "p"})
