"""Greedy answers are labelled with how often samples agree, or with whether they are right."""

from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Reply, Request
from data_builders.elical import agreement, words_of
from tests.data_builders.checks import survives_a_kill, trains
from tests.data_builders.running import build, reasons, write
from tests.llm.server import Answer, Body

SAMPLES = ("The cat.", "a cat", "CAT!", "a dog")


def policy(request: Request) -> str | Reply:
    """Greedy it says `Cat`; of four samples three agree."""
    words = as_text(as_messages(request.prompt)[-1:])
    if words == "mumble":
        return "..."
    if words == "ramble" and request.sample in (1, 2):
        return Reply("a cat that", "length") if request.sample == 1 else Reply("", "refusal")
    if words == "ramble on":
        return Reply("a cat that", "length")
    return "Cat" if request.sampling.temperature == 0 else SAMPLES[request.sample % 4]


MODEL = ("--model", f"program:{__name__}.policy")


def made(folder: Path, rows: list[dict[str, Any]], *argv: str) -> list[dict[str, Any]]:
    return build(folder, "elical", rows, *MODEL, *argv)


def test_answers_agree_by_their_words():
    assert words_of("The Cat, a cat!") == ["cat", "cat"]
    assert agreement("Cat", ["the cat", "dog", "CAT.", "cat cat"]) == 0.5


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        *(("5", "-5"), ("5", "\N{MINUS SIGN}5"), ("5", ".5"), ("5", "5%"), ("O", "O-")),
        *(("x < 5", "x > 5"), ("x - 5", "x + 5"), ("x * 5", "x / 5"), ("x**2", "x*2")),
        *(("10-5", "10 5"), ("10 - 5", "10, 5"), ("C", "C++")),
    ],
)
def test_signs_and_operators_tell_answers_apart(answer: str, other: str):
    assert agreement(answer, [other]) == 0.0


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        *(("-5 °C", "\N{EN DASH}5°C"), ("**5**", "5."), ("10 - 5", "10-5"), ("5 * 3", "5*3")),
        *(("well-known", "well known"), ("- Paris", "Paris"), ("* Paris", "Paris")),
        *(("Paris - the capital", "Paris, the capital"), ("Covid-19", "COVID 19")),
    ],
)
def test_marks_around_and_between_words_do_not(answer: str, other: str):
    assert agreement(answer, [other]) == 1.0


def test_an_article_stands_before_a_word():
    assert words_of("A.") == words_of("(A)") == ["a"]
    assert agreement("B", ["A, B", "A < B", "A) B"]) == 0.0
    assert agreement("vitamin", ["vitamin A"]) == 0.0
    assert agreement("cat", ["The **cat**", "**the** cat", 'a "cat"']) == 1.0


def test_the_target_is_the_share_of_samples_that_agree(tmp_path: Path):
    (row,) = made(tmp_path, [{"prompt": "name one"}], "--samples", "4")
    assert (row["completion"], row["reward"]) == ("Cat", 0.75)
    assert row["meta"]["samples"] == list(SAMPLES)
    assert row["meta"]["target"] == "agreement"


def test_the_target_may_be_whether_the_answer_is_right(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": "one", "answer": "the cat"},
        {"prompt": "two", "answer": ["dog", "hen"]},
        {"prompt": "three", "answer": 3},
    ]
    labelled = made(tmp_path, rows, "--target", "correctness")
    assert [row["reward"] for row in labelled] == [1.0, 0.0]
    assert reasons(tmp_path) == ["no_answer"]


def test_a_choice_named_a_is_an_answer(tmp_path: Path):
    rows = [{"prompt": "choose", "answer": right} for right in ("A", "B")]
    model = ("--model", f"program:{__name__}.choosing")
    labelled = build(tmp_path, "elical", rows, *model, "--target", "correctness")
    assert [(row["completion"], row["reward"]) for row in labelled] == [("A", 1.0), ("A", 0.0)]


def choosing(request: Request) -> str:
    return "A"


def test_samples_that_are_refused_or_cut_do_not_agree(tmp_path: Path):
    rows = [{"prompt": "ramble"}, {"prompt": "ramble on"}]
    (row,) = made(tmp_path, rows, "--samples", "4")
    assert (row["completion"], row["reward"]) == ("Cat", 0.25)
    assert row["meta"]["samples"] == ["The cat.", None, None, "a dog"]
    assert reasons(tmp_path) == ["truncated"]  # the greedy answer itself


def test_an_answer_without_words_is_a_reject(tmp_path: Path):
    made(tmp_path, [{"prompt": "mumble"}, {"prompt": "name one"}], "--samples", "2")
    assert reasons(tmp_path) == ["empty"]


def test_bad_input_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no column `answer`"):
        made(tmp_path, [{"prompt": "a"}], "--target", "correctness")
    with pytest.raises(UserError, match="`samples` is 0; it must be at least 1"):
        made(tmp_path, [{"prompt": "a"}], "--samples", "0")


def script(index: int, body: Body) -> Answer:
    greedy = body["temperature"] == 0
    return Answer("yes" if greedy or body["seed"] % 2 else "no")


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_a_head_learns_its_targets(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", [{"prompt": f"question {i}"} for i in range(16)])
    words = ("build", "elical", "--input", source, "--samples", "4")
    rows = survives_a_kill(tmp_path, script, *words)
    assert {row["reward"] for row in rows} <= {0, 0.25, 0.5, 0.75, 1}
    trains(tmp_path, tmp_path / "whole" / "out.jsonl", "elical")
