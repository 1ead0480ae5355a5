"""Contrast and length, with the arithmetic shown."""

from pathlib import Path
from typing import Any

import pytest

from alignment.core.groups import RowError
from alignment.core.rows import read_rows
from alignment.llm.rows import Row
from data_builders.statistics import (
    Collector,
    Statistics,
    edit_distance,
    jaccard,
    normalised_edit_distance,
    pair_statistics,
)


def test_equal_texts_overlap_fully_and_are_no_distance_apart():
    text = "The answer, in short: 42."
    assert (jaccard(text, text), edit_distance(text, text)) == (1.0, 0)
    assert (jaccard("", ""), normalised_edit_distance("", "")) == (1.0, 0.0)


def test_disjoint_token_sets_do_not_overlap():
    assert jaccard("one two", "three four") == 0.0


def test_jaccard_counts_each_token_once():
    """{a, b, .} and {a, c, .} share a and the stop: 2 of 4."""
    assert jaccard("a a b.", "c. a a a") == 2 / 4


def test_edit_distance_is_in_characters():
    """kitten -> sitten -> sittin -> sitting: 3 edits, of 7 characters."""
    assert edit_distance("kitten", "sitting") == 3
    assert normalised_edit_distance("kitten", "sitting") == pytest.approx(3 / 7, rel=1e-12)


@pytest.mark.parametrize("measure", [jaccard, edit_distance, normalised_edit_distance])
def test_measures_are_symmetric(measure):
    first, second = "the cat sat on the mat", "a cat sat, on mats"
    assert measure(first, second) == measure(second, first)


def test_statistics_of_pairs_are_means_and_shares():
    """Lengths (4, 2), (2, 4), (3, 3): means 3 and 3; chosen is longer once in three, equal once.

    Token sets are {abcd} {ab}, {ab} {abcd}, {abc} {abc}: overlaps 0, 0, 1. Edits 2, 2, 0, over
    lengths 4, 4, 3.
    """
    made = pair_statistics([("abcd", "ab"), ("ab", "abcd"), ("abc", "abc")])
    assert made._asdict() == pytest.approx(
        {
            "pairs": 3,
            "chosen_length": 3.0,
            "rejected_length": 3.0,
            "length_win_rate": 1 / 3,
            "length_ties": 1 / 3,
            "jaccard": 1 / 3,
            "edit_distance": 4 / 3,
            "normalised_edit_distance": (0.5 + 0.5 + 0) / 3,
        },
        rel=1e-12,
    )


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        pair_statistics([])


def collected(*rows: Row, **options: Any) -> Statistics:
    collector = Collector(**options)
    for row in rows:
        collector.add(row)
    return collector.statistics()


def test_pairs_are_measured_by_side():
    made = collected(
        {"prompt": "p", "chosen": "abcd", "rejected": "ab"},
        {"prompt": "pp", "chosen": "a", "rejected": "abc"},
    )
    assert made.formats == {"pair": 2}
    assert {name: (of["count"], of["mean"]) for name, of in made.lengths.items()} == {
        "prompt": (2, 1.5),
        "chosen": (2, 2.5),
        "rejected": (2, 2.5),
    }
    assert made.pairs is not None
    assert (made.pairs.pairs, made.pairs.length_win_rate) == (2, 0.5)
    assert made.groups is None


def test_scored_groups_contrast_their_best_with_their_worst_response():
    """Best and worst are `long one` and `x`; two of three are worst in the second group."""
    made = collected(
        {"prompt": "p", "responses": ["x", "long one", "mid"], "rewards": [0, 2, 1]},
        {"prompt": "q", "responses": ["a", "a", "bcd"], "rewards": [1, 1, 4]},
        {"prompt": "r", "responses": ["c", "d"], "rewards": [3, 3]},
        {"prompt": "s", "responses": ["e", "f"]},
    )
    assert made.formats == {"group": 4}
    assert made.groups is not None
    assert made.groups._asdict() == {
        "groups": 4,
        "smallest": 2,
        "largest": 3,
        "reward_gap": (2 + 3 + 0) / 3,
        "tie_best": 0,
        "tie_worst": 1,
        "no_gap": 1,
        "no_reward": 1,
        "repeated": 1,
    }
    assert made.pairs is not None
    assert (made.pairs.pairs, made.pairs.length_win_rate) == (2, 1.0)
    assert made.pairs.chosen_length == (8 + 3) / 2
    assert made.lengths["response"]["count"] == 10


def test_single_responses_are_counted_by_their_labels():
    alone = {"prompt": "p", "completion": "c"}
    made = collected(
        {**alone, "label": True},
        {**alone, "label": False},
        alone,
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]},
    )
    assert (made.formats, made.labels) == ({"response": 4}, {"desirable": 1, "undesirable": 1})
    assert (made.pairs, made.groups) == (None, None)


def test_judgments_are_counted_and_null_is_no_fault():
    row = {"instruction": "p", "output": "o"}
    made = collected(*({**row, "judgment": said} for said in ("too short", None, None)))
    assert made.formats == {"response": 2, "judged": 1}
    assert made.labels == {"no_fault": 2, "judged": 1}


def test_near_duplicates_are_counted_over_rows_and_not_within_one():
    text = "A sentence that is long enough to be compared piece by piece with another one. " * 3
    made = collected(
        {"prompt": "one", "chosen": text, "rejected": text + "!"},
        {"prompt": "two", "chosen": text + "?", "rejected": "no"},
    )
    assert made.near_duplicates == {"prompts": 0, "responses": 1}


def test_lengths_may_be_in_another_unit():
    made = collected(
        {"prompt": "a b", "completion": "c d e"}, length=lambda text: len(text.split())
    )
    assert [of["median"] for of in made.lengths.values()] == [2, 3]


def test_quantiles_are_those_of_the_lengths():
    """Lengths 1 to 101: the q-th quantile is 1 + 100 q."""
    made = collected(*({"prompt": "p", "completion": "x" * n} for n in range(1, 102)))
    assert made.lengths["response"] == {
        **{"count": 101, "mean": 51.0, "min": 1.0, "p5": 6.0, "p25": 26.0, "median": 51.0},
        **{"p75": 76.0, "p95": 96.0, "max": 101.0},
    }


def test_a_row_that_is_no_data_is_refused_and_not_counted():
    collector = Collector()
    with pytest.raises(RowError):
        collector.add({"prompt": "p"})
    assert collector.statistics().rows == 0


def test_real_scored_groups_make_805_pairs_and_their_ties_are_counted(shared_dir: Path):
    path = shared_dir / "data" / "rewards" / "alpaca_eval_k8.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the shared files")
    made = collected(*(row for _, row in read_rows(path)))
    assert made.pairs is not None
    assert made.groups is not None
    assert (made.groups.groups, made.pairs.pairs) == (805, 805)
    assert (made.groups.tie_best, made.groups.tie_worst, made.groups.repeated) == (5, 8, 21)
