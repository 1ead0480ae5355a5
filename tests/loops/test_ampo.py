"""AMPO: a positive, selected negatives, and the others that only the mean reward sees."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from alignment.cli import UserError
from alignment.core.groups import group_from_row
from alignment.core.rows import read_rows
from alignment.llm.rows import Output
from alignment.loops.ampo import roles_of, write_selected
from alignment.rounds.loop import load_loop
from data_builders.selection import Selection


def test_the_best_is_positive_and_k_others_are_negative():
    """Rewards 2, 5, 1, 3: the two lowest beside the best are those with 1 and 2."""
    roles = roles_of([2.0, 5.0, 1.0, 3.0], np.zeros((4, 1)), "bottom_k", 2, seed=0)
    assert roles == [-1, 1, -1, 0]


def test_an_answer_as_good_as_the_best_is_no_negative():
    assert roles_of([5.0, 5.0, 1.0], np.zeros((3, 1)), "bottom_k", 2, seed=0) == [1, 0, -1]


def test_opt_select_covers_what_lies_apart():
    """Beside the best, two answers lie together and one apart: one of each is selected."""
    places = np.array([[5.0], [0.0], [0.1], [9.0]])
    roles = roles_of([5.0, 1.0, 2.0, 2.0], places, "opt_select", 2, seed=0)
    assert roles == [1, -1, 0, -1]


@pytest.mark.parametrize("how", ["bottom_k", "opt_select"])
def test_groups_get_roles_and_those_without_a_gap_are_rejected(
    tmp_path: Path, model_dir: Path, how: Selection
):
    texts = ["one", "two", "three and four", "five"]
    rated = tmp_path / "rated.jsonl"
    rows = [
        {"prompt": "p", "responses": texts, "rewards": [1.0, 5.0, 2.0, 2.0]},
        {"prompt": "q", "responses": texts, "rewards": [3.0] * 4},
    ]
    rated.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Output(tmp_path / "out.jsonl") as output:
        write_selected(output, rated, model_dir, how=how, k=2, seed=0)
    ((_, row),) = read_rows(tmp_path / "out.jsonl")
    group = group_from_row(row)
    assert sorted(response.role for response in group.responses) == [-1, -1, 0, 1]
    assert group.responses[1].role == 1
    assert [response.reward for response in group.responses] == [1.0, 5.0, 2.0, 2.0]
    ((_, rejected),) = read_rows(tmp_path / "out.jsonl.rejects.jsonl")
    assert rejected["reason"] == "no_gap"


def test_a_missing_library_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match="`coreset` clusters by k-means: install the extra `select"):
        load_loop("ampo", {"selection": "coreset"}).check(rounds=1)
    load_loop("ampo", {}).check(rounds=1)


def test_more_negatives_than_samples_are_refused():
    with pytest.raises(UserError, match="must be from 1 to `samples` - 1, which is 3"):
        load_loop("ampo", {"samples": 4, "negatives": 4})
