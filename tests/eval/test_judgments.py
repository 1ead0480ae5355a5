"""MT-Bench's published numbers from its published judgments, and files that do not fit."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from eval.judgments import (
    Judgment,
    average,
    intervals,
    judged_again,
    read_judgments,
    refuse_unjudged,
)
from eval.verdicts import read_rating


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "judgments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**columns: Any) -> dict[str, Any]:
    return {"question_id": 81, "model": "m", "turn": 1, "score": 7, **columns}


def test_the_published_means_come_out(shared_dir: Path):
    folder = shared_dir / "data/mt_bench"
    expected = json.loads((folder / "expected.json").read_text())
    judgments = read_judgments(folder / "judgments_single.jsonl.gz")
    made = average(judgments)
    assert made.keys() == expected["models"].keys()
    assert sum(means["rows"] for means in made.values()) == expected["rows"]
    for model, means in made.items():
        published = expected["models"][model]
        assert (means["rows"], means["unjudged"]) == (published["rows"], published["minus_one"])
        for name in ("turn1", "turn2", "average"):
            assert means[name] == pytest.approx(published[name], abs=1e-12)
        assert means["by_category"] == pytest.approx(published["by_category"], abs=1e-12)
    assert judged_again(judgments) == {"mistral-orpo": 160}


def test_every_published_score_is_read_again_from_its_text(shared_dir: Path):
    with gzip.open(shared_dir / "data/mt_bench/judgments_single.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]

    def read(text: str) -> float:
        try:
            return read_rating(text)
        except ValueError:
            return -1

    assert [row["score"] for row in rows] == [read(row["judgment"]) for row in rows]
    assert len(rows) == 800


def test_the_layout_of_fastchat_has_its_categories_from_the_questions(tmp_path: Path):
    written = row(
        judge=["gpt-4", "single-v1"], user_prompt="...", judgment="Rating: [[7]]", tstamp=1.5
    )
    path = write(tmp_path, [written, row(question_id=82, score=-1)])
    assert read_judgments(path, {"81": "writing"}) == [
        Judgment("m", "81", 1, 7, "writing"),
        Judgment("m", "82", 1, None, None),
    ]
    (means,) = average(read_judgments(path)).values()
    assert means["by_category"] == {}


def test_means_are_over_judged_rows_whatever_their_number():
    """Turn 1: (8 + 5) / 2; turn 2: 2, the other is unjudged; pooled 15 / 3."""
    rows = [
        Judgment("m", "1", 1, 8.0, "math"),
        Judgment("m", "1", 2, 2.0, "math"),
        Judgment("m", "2", 1, 5.0, "stem"),
        Judgment("m", "2", 2, None, "stem"),
    ]
    assert average(rows)["m"] == {
        "turn1": 6.5,
        "turn2": 2.0,
        "average": 5.0,
        "rows": 4,
        "unjudged": 1,
        "by_category": {"math": 5.0, "stem": 5.0},
    }


def test_a_mean_of_nothing_is_none():
    made = average([Judgment("m", "1", 1, None, "math")])["m"]
    assert (made["turn1"], made["turn2"], made["average"]) == (None, None, None)
    assert made["by_category"] == {"math": None}
    assert intervals([Judgment("m", "1", 1, None, "math")], seed=0) == {"m": {}}


def test_a_judgment_without_a_score_is_read(tmp_path: Path):
    rows = [row(judgment="[[6.5]]"), row(judgment="no idea")]
    for each in rows:
        del each["score"]
    assert [made.score for made in read_judgments(write(tmp_path, rows))] == [6.5, None]


@pytest.mark.parametrize(
    ("winners", "scores"),
    [
        (("model_1", "model_1"), (1.0, 0.0)),
        (("model_2", "model_2"), (0.0, 1.0)),
        (("model_1", "model_2"), (0.5, 0.5)),
        (("model_1", "tie"), (0.5, 0.5)),
        (("tie", "tie"), (0.5, 0.5)),
        (("model_1", "error"), (None, None)),
    ],
)
def test_whoever_wins_both_orders_has_won(tmp_path: Path, winners, scores):
    pair = {"question_id": 81, "model_1": "a", "model_2": "b", "turn": 2}
    pair |= {"g1_winner": winners[0], "g2_winner": winners[1]}
    made = read_judgments(write(tmp_path, [pair]))
    assert [(judged.model, judged.score) for judged in made] == [*zip("ab", scores, strict=True)]
    means = average(made)["a"]
    assert means["wins"] + means["losses"] + means["ties"] + means["unjudged"] == 1


def test_questions_are_drawn_not_rows():
    """Two questions, rated 1 and 9 in both turns and twice: a mean of 1, 5 or 9, never between."""
    rows = [
        Judgment("m", question, turn, score, None)
        for question, score in (("1", 1.0), ("2", 9.0))
        for turn in (1, 2)
        for _ in range(2)
    ]
    assert intervals(rows, seed=0, resamples=500)["m"]["average"] == (1.0, 9.0)


def test_the_interval_is_that_of_a_mean_over_questions():
    """400 questions, half 4 and half 6: 5 +- 1.96 * 1 / sqrt(400)."""
    rows = [Judgment("m", str(i), 1, 4.0 + 2 * (i % 2), None) for i in range(400)]
    low, high = intervals(rows, seed=0)["m"]["turn1"]
    assert (low, high) == (pytest.approx(5 - 0.098, abs=0.01), pytest.approx(5 + 0.098, abs=0.01))
    few = [Judgment("m", str(i), 1, i**1.5, None) for i in range(9)]
    assert intervals(few, seed=0) == intervals(few, seed=0) != intervals(few, seed=1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": float("nan")}, r"judgments\.jsonl:1: `score` must be a number .*got `nan`"),
        ({"score": -2}, r"got `-2`"),
        ({"score": "8"}, r"got `8`"),
        ({"score": True}, r"got `True`"),
        ({"turn": 3}, r"`turn` must be 1 or 2, got `3`"),
        ({"turn": None}, r"`turn` must be 1 or 2"),
        ({"model_1": "a", "model_2": "b", "g1_winner": "A", "g2_winner": "A"}, "a winner is"),
    ],
)
def test_what_is_no_judgment_is_named(tmp_path: Path, columns: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read_judgments(write(tmp_path, [row(**columns)]))


@pytest.mark.parametrize("column", ["question_id", "model", "turn"])
def test_a_missing_column_is_named(tmp_path: Path, column: str):
    broken = row()
    del broken[column]
    with pytest.raises(UserError, match=rf"judgments\.jsonl:1: no column '{column}'"):
        read_judgments(write(tmp_path, [broken]))


def test_a_file_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no judgments"):
        read_judgments(write(tmp_path, []))


def test_too_few_judged_rows_are_refused_by_model():
    means = {"a": {"rows": 20, "unjudged": 1}, "b": {"rows": 20, "unjudged": 2}}
    with pytest.raises(UserError, match=r"only 18 of 20 rows of b .*`--allow-missing`"):
        refuse_unjudged(means)
