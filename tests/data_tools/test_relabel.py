"""Rewards become quantiles within their prompt, spread for the way a model will be sampled."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.groups import group_from_row
from alignment.data_tools.relabel import quantiles, relabel, transformed
from alignment.llm.rows import Reject

GROUP = {"prompt": "p", "responses": ["a", "b", "c"], "rewards": [-7.0, 3.0, 3.0]}


def test_a_quantile_is_the_share_of_the_others_below_with_ties_halved():
    """Of two others: none below; one below and one equal, 1.5 / 2."""
    assert quantiles([-7.0, 3.0, 3.0]) == [0.0, 0.75, 0.75]
    assert quantiles([5.0, 1.0]) == [1.0, 0.0]
    assert quantiles([2.0, 2.0, 2.0]) == [0.5, 0.5, 0.5]


def test_quantiles_forget_the_scale_and_average_one_half():
    rewards = [0.3, -2.0, 9.0, 0.3, 1.0]
    assert quantiles(rewards) == quantiles([math.exp(r) for r in rewards])
    assert sum(quantiles(rewards)) == pytest.approx(len(rewards) / 2)


def test_worked_numbers_of_the_transforms():
    """(e^(t u) - 1) / (e^t - 1) and (1 - e^(-t u)) / (1 - e^-t) at u = 1/2, t = 2."""
    best, worst = ((math.e - 1) / (math.e**2 - 1), (1 - 1 / math.e) / (1 - math.e**-2))
    assert transformed(0.5, "best_of_n", 2.0) == pytest.approx(best)
    assert transformed(0.5, "worst_of_n", 2.0) == pytest.approx(worst)
    assert best + worst == pytest.approx(1)  # one is the other turned round
    assert transformed(0.5, "none", 2.0) == 0.5


@pytest.mark.parametrize("strength", [1e-6, 10.0, 1000.0])
@pytest.mark.parametrize("transform", ["none", "best_of_n", "worst_of_n"])
def test_transforms_keep_the_order_and_the_ends(transform: Any, strength: float):
    labels = [transformed(u / 8, transform, strength) for u in range(9)]
    assert labels == sorted(labels)
    assert (labels[0], labels[-1]) == (0, 1)


def test_best_of_n_tells_the_best_apart_and_worst_of_n_the_worst():
    best, worst = (
        [transformed(u, kind, 10.0) for u in (0.0, 0.5, 1.0)]
        for kind in ("best_of_n", "worst_of_n")
    )
    assert best[2] - best[1] > 0.99
    assert worst[1] - worst[0] > 0.99


def test_old_rewards_stay_beside_the_new_ones():
    group = relabel(group_from_row(GROUP), "worst_of_n", 10.0)
    assert [response.reward for response in group.responses] == [
        transformed(u, "worst_of_n", 10.0) for u in (0.0, 0.75, 0.75)
    ]
    assert group.meta["relabel"] == {
        "transform": "worst_of_n",
        "strength": 10.0,
        "rewards": [-7.0, 3.0, 3.0],
    }


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "responses": ["a"], "rewards": [1.0]},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1.0},
    ],
)
def test_a_row_without_enough_rewards_is_a_reject(row: dict[str, Any]):
    with pytest.raises(Reject, match="needs at least two responses, all with rewards"):
        relabel(group_from_row(row), "none", 10.0)


def test_the_command_writes_rows_and_rejects(tmp_path: Path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 4}
    rows = [GROUP, pair, {"prompt": "p", "completion": "a"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dispatch(["data", "relabel", "--input", str(source), "--output", str(output)])
    first, second = map(json.loads, output.read_text().splitlines())
    assert first["rewards"] == [0.0, 0.75, 0.75]
    assert (second["score_chosen"], second["score_rejected"]) == (1.0, 0.0)
    rejects = (tmp_path / "out.jsonl.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejects] == ["no_reward"]


@pytest.mark.parametrize("strength", ["0", "inf", "nan"])
def test_a_strength_that_is_no_number_above_zero_is_refused(strength: str):
    words = ["data", "relabel", "--input", "a", "--output", "b.jsonl", "--strength", strength]
    with pytest.raises(UserError, match=r"`strength` is \S+; it must be a number above 0"):
        dispatch(words)
