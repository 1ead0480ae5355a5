"""Two answers of other models, ordered by rewards or by a judge."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from tests.data_builders.checks import trains
from tests.data_builders.running import build, reasons, report


def judge(request: Request) -> str:
    """Prefers the answer that comes later in the alphabet."""
    shown = sections(as_text(request.prompt))
    return f"Verdict: {'A' if shown['answer_A'] > shown['answer_B'] else 'B'}"


JUDGE = ("--judge-model", f"program:{__name__}.judge")


def group(index: int, *rewards: float | None) -> dict[str, Any]:
    return {
        "prompt": f"p{index}",
        "responses": [f"{'abcdefgh'[i]}{index}" for i in range(len(rewards))],
        "rewards": list(rewards),
        "models": [f"m{i}" for i in range(len(rewards))],
    }


def made(folder: Path, rows: list[dict[str, Any]], *argv: object) -> list[dict[str, Any]]:
    return build(folder, "off_policy_judge", rows, *argv)


def test_the_higher_reward_is_chosen(tmp_path: Path):
    (pair,) = made(tmp_path, [group(0, 0.2, 0.9)])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("p0", "b0", "a0")
    assert (pair["score_chosen"], pair["score_rejected"]) == (0.9, 0.2)
    assert pair["meta"]["models"] == {"chosen": "m1", "rejected": "m0"}
    assert pair["meta"]["on_policy"] == {"chosen": False, "rejected": False}


def test_two_of_several_are_drawn_by_the_seed(tmp_path: Path):
    rows = [group(i, 0.1, 0.2, 0.3, 0.4) for i in range(40)]
    drawn = [{pair["chosen"], pair["rejected"]} for pair in made(tmp_path, rows)]
    again = made(tmp_path / "again", rows[::-1])[::-1]
    assert drawn == [{pair["chosen"], pair["rejected"]} for pair in again]
    other = made(tmp_path / "other", rows, "--seed", 1)
    assert drawn != [{pair["chosen"], pair["rejected"]} for pair in other]
    assert all(pair["score_chosen"] > pair["score_rejected"] for pair in other)
    assert len({tuple(sorted(text[0] for text in pair)) for pair in drawn}) == 6  # of 4 over 2


def test_best_against_worst_breaks_ties_by_the_seed_and_says_so(tmp_path: Path):
    rows = [group(0, 0.1, 0.9, 0.9, 0.5), group(1, 0.5, 0.5)]
    (pair,) = made(tmp_path, rows, "--select", "best_worst")
    assert (pair["score_chosen"], pair["score_rejected"]) == (0.9, 0.1)
    assert pair["meta"]["ties"] == ["tie_best"]
    assert reasons(tmp_path) == ["no_gap"]


def test_a_judge_orders_answers_without_rewards(tmp_path: Path):
    row = {"prompt": "p", "responses": ["alpha", "omega"]}
    (pair,) = made(tmp_path, [row], *JUDGE)
    assert (pair["chosen"], pair["rejected"]) == ("omega", "alpha")
    assert pair["meta"]["judge"]["score"] in (0.0, 1.0)


def test_rows_without_an_order_are_listed(tmp_path: Path):
    rows = [
        group(0, 0.1, 0.2),
        group(1, 0.5, 0.5),
        group(2, 0.5),
        {"prompt": "p", "responses": ["a", "b"]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [1.0]},
        {"prompt": "p", "responses": ["a ", " a"], "rewards": [1.0, 2.0]},
    ]
    assert len(made(tmp_path, rows)) == 1
    assert reasons(tmp_path) == ["tie", "no_response", "no_reward", "length_mismatch", "identical"]
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)


def test_best_against_worst_takes_no_judge(tmp_path: Path):
    with pytest.raises(UserError, match="goes by rewards; leave out `judge_model`"):
        made(tmp_path, [group(0, 0.1, 0.2)], "--select", "best_worst", *JUDGE)


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `responses`.*did you mean `response`"):
        made(tmp_path, [{"prompt": "p", "response": "r"}])


def test_real_rewards_give_pairs_with_a_strict_gap(tmp_path: Path, shared_dir: Path):
    path = shared_dir / "data" / "rewards" / "alpaca_eval_k8.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the shared files")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = made(tmp_path, rows, "--select", "best_worst")
    assert len(pairs) == 805
    assert all(pair["score_chosen"] > pair["score_rejected"] for pair in pairs)
    ties = [tie for pair in pairs for tie in pair["meta"]["ties"]]
    assert (ties.count("tie_best"), ties.count("tie_worst")) == (5, 8)


@pytest.mark.slow
def test_its_pairs_train(tmp_path: Path):
    made(tmp_path, [group(i, i / 100, 1.0) for i in range(20)])
    trains(tmp_path, tmp_path / "out.jsonl", "apo", kwargs={"variant": "down"})
