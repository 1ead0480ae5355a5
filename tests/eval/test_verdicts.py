"""What is a verdict and what is prose, as tables."""

import json
import math

import pytest

from alignment.llm.protocol import Reply
from eval.verdicts import (
    Preference,
    Rating,
    Ratings,
    TokenPreference,
    read_letter,
    read_rating,
    weigh,
)


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("Verdict: A", 1.0),
        ("A is better.\n\nVerdict: B\n", 0.0),
        ("verdict: TIE", 0.5),
        ("**Verdict: A**", 1.0),
        ("Because ...\n[[B]]", 0.0),
        ("A", 1.0),
        ("Verdict: A\nNo, wait.\nVerdict: B", 0.0),
        ("Because ...\r\nVerdict: B\r\n", 0.0),
    ],
)
def test_the_last_line_is_the_verdict(text: str, preference: float):
    assert read_letter(Reply(text)) == Preference(preference)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Both answers have their merits.",
        "Verdict: A\nbut I am not sure.",
        "I would say that the verdict is A",
        "Verdict: C",
        "Verdict: A or B",
        "Verdict:",
        "Apple",
        "It says\u2028Verdict: A",
    ],
)
def test_prose_is_no_verdict(text: str):
    with pytest.raises(ValueError, match="no verdict"):
        read_letter(Reply(text))


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[8.5]] because ...", 8.5),
        ("see [3], rating: [[9]]", 9.0),
        ("first [[2]], then [[10]]", 2.0),
        ("Rating: [6]", 6.0),
        ("[4] and [5]", 4.0),
        ("[[7.]]", 7.0),
        ("[[[7]]]", 7.0),
    ],
)
def test_a_rating_is_the_first_in_double_brackets_else_in_single_ones(text: str, rating: float):
    assert read_rating(text) == rating


@pytest.mark.parametrize(
    "text", ["", "Rating: 7", "[[seven]]", "[[-1]]", "[[ 7 ]]", "[[7/10]]", "$ERROR$", "[[7"]
)
def test_anything_else_is_no_rating(text: str):
    with pytest.raises(ValueError, match="no rating"):
        read_rating(text)


@pytest.mark.parametrize("text", ["[[0]]", "[[11]]", "[2023]"])
def test_a_rating_off_the_scale_is_none(text: str):
    with pytest.raises(ValueError, match="not between 1 and 10"):
        Rating()(Reply(text))


@pytest.mark.parametrize(
    ("text", "ratings"),
    [
        ("Ratings: 7, 3, 9", (7.0, 3.0, 9.0)),
        ("Well.\n**Ratings: 7.5,3**", (7.5, 3.0)),
        ("ratings 1 2", (1.0, 2.0)),
        ("Rating: 10", (10.0,)),
    ],
)
def test_several_ratings_stand_in_the_last_line(text: str, ratings: tuple[float, ...]):
    assert Ratings()(Reply(text)) == ratings


@pytest.mark.parametrize(
    "text", ["", "Ratings: 7, x", "Ratings: -7, 3", "Ratings: 0, 3", "Ratings: 3\nDone.", "7/10"]
)
def test_other_lines_are_no_ratings(text: str):
    with pytest.raises(ValueError, match=r"no ratings|not between"):
        Ratings()(Reply(text))


def test_log_probs_weigh_two_tokens_against_each_other():
    """.3 / (.3 + .1) = .75; other tokens are of no account, a missing one is impossible."""
    top = {"A": math.log(0.3), "B": math.log(0.1), " A": math.log(0.2)}
    assert weigh(top, ("A", "B")) == pytest.approx(0.75)
    assert weigh({"A": -1.0}, ("A", "B")) == 1.0
    assert weigh({"A": -1.0}, ("B", "A")) == 0.0
    assert weigh({"The": -1.0}, ("A", "B")) is None
    assert weigh({"A": -2000.0, "B": -2000.0}, ("A", "B")) == 0.5


def test_a_log_prob_that_is_not_a_number_is_no_verdict():
    with pytest.raises(ValueError, match="not a number"):
        weigh({"A": math.nan, "B": -1.0}, ("A", "B"))


@pytest.mark.parametrize("said", ["", "C", "A or B", "a"])
def test_a_reply_that_names_neither_token_is_no_verdict(said: str):
    with pytest.raises(ValueError, match="names neither"):
        TokenPreference(("A", "B"))(Reply(said, top_logprobs=({"The": -0.1},)))


def test_published_preferences_are_recomputed_from_their_log_probs(shared_dir):
    """AlpacaEval: m is shown first unless the order was swapped; preference = 1 + P(model)."""
    import gzip

    file = shared_dir / "data/alpaca_eval/annotations/claude-2.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["judge_top_logprobs"]]
    assert len(rows) > 700
    for row in rows:
        reply = Reply(top_logprobs=(row["judge_top_logprobs"],))
        made = TokenPreference(("m", "M"))(reply)
        second = 1.0 - made.value  # the model is shown second unless swapped
        expected = row["preference"] - 1.0
        assert made.weighted
        assert (made.value if row["judge_saw_swapped"] else second) == pytest.approx(
            expected, abs=1e-6
        )
