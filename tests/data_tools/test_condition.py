"""Control tokens stand before segments by their scores, and the segments follow."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.groups import group_from_row, row_from_group, text_of
from alignment.data_tools.condition import Controls, condition, conditioned
from alignment.llm.rows import Reject
from tests.conftest import ROOT

ALL = Controls("<+>", "<->", threshold=0.5, drop_fraction=0.0)
ROW = {
    "prompt": "p",
    "segments": [{"text": " good.", "score": 0.5}, {"text": " bad.", "score": 0.6}],
}


def test_a_segment_at_the_threshold_is_aligned():
    parts = [(" good.", 0.5), (" bad.", 0.6)]
    assert conditioned(parts, ALL, "seed") == ["<+> good.", "<-> bad."]


def test_a_fraction_goes_without_and_the_seed_decides_which():
    parts = [("x", 0.0)] * 2000
    half = Controls("<+>", "<->", 0.5, drop_fraction=0.25)
    texts = conditioned(parts, half, "a")
    assert texts == conditioned(parts, half, "a")
    assert texts != conditioned(parts, half, "b")
    assert texts.count("x") == pytest.approx(500, abs=80)


def test_segments_follow_their_text_and_the_row_is_one_that_training_reads():
    group = condition(group_from_row(ROW), ALL, seed=0)
    (response,) = group.responses
    text = text_of(response.content)
    assert text == "<+> good.<-> bad."
    assert response.segments is not None
    assert [text[part.start : part.end] for part in response.segments] == ["<+> good.", "<-> bad."]
    assert [part.score for part in response.segments] == [0.5, 0.6]
    assert group_from_row(row_from_group(group)) == group


def test_a_response_with_a_reward_alone_is_one_segment():
    """The score is minus the reward: -1 is aligned, 2 is not."""
    row = {"prompt": "p", "responses": [" a", " b"], "rewards": [1.0, -2.0]}
    group = condition(group_from_row(row), ALL, seed=0)
    assert [response.content for response in group.responses] == ["<+> a", "<-> b"]


def test_messages_stay_messages():
    row: dict[str, Any] = {
        "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": " good."}],
        "segments": [{"text": " good.", "score": 0.0}],
    }
    (response,) = condition(group_from_row(row), ALL, seed=0).responses
    assert response.content == [{"role": "assistant", "content": "<+> good."}]


def test_a_response_without_scores_is_a_reject():
    with pytest.raises(Reject, match="needs `segments` with scores, or a `reward`"):
        condition(group_from_row({"prompt": "p", "completion": "a"}), ALL, seed=0)


def test_the_data_of_the_smoke_recipe_is_what_the_command_makes(tmp_path: Path):
    output = tmp_path / "conditioned.jsonl"
    dispatch(
        [
            *("data", "condition", "--input", str(ROOT / "recipes" / "data" / "segments.jsonl")),
            *("--output", str(output), "--threshold", "0.5", "--drop-fraction", "0.05"),
        ]
    )
    made, kept = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (output, ROOT / "recipes" / "data" / "conditioned.jsonl")
    )
    assert made == kept


def test_a_fraction_that_is_none_is_refused():
    argv = ["data", "condition", "--input", "a", "--output", "b.jsonl", "--threshold", "0"]
    with pytest.raises(UserError, match=r"`drop_fraction` is 2\.0"):
        dispatch([*argv, "--drop-fraction", "2"])
