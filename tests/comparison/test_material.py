"""Every kind of data is made of the same samples, is true, and can be trained on."""

from collections.abc import Callable, Sequence

import pytest

from alignment.comparison.material import (
    KINDS,
    Samples,
    flagged,
    groups,
    hinted,
    judged_pairs,
    reward,
    segments,
    spans,
    strongly_labelled_pairs,
    weakly_labelled_pairs,
    worse_pairs,
)
from alignment.core.groups import group_from_row
from alignment.quickstart import world

PROMPTS = world.prompts("train", 60, seed=3)


def answers(*kinds: str) -> dict[str, Sequence[str]]:
    """For each prompt one answer of each kind, `right` or `wrong`."""
    rng = Samples({}, {}, {}, {}, {}, seed=0).draws("test")
    made: dict[str, Callable[[str], str]] = {
        "right": lambda prompt: world.accepted(prompt)[0],
        "wrong": lambda prompt: world.flaw(prompt, rng),
    }
    return {prompt: [made[kind](prompt) for kind in kinds] for prompt in PROMPTS}


SAMPLES = Samples(
    own=answers("wrong", "right", "right", "wrong"),
    teacher=answers("right"),
    kind=answers("right"),
    unkind=answers("wrong"),
    plain=answers("right", "wrong"),
    seed=5,
)


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("first", "teacher")])
def test_every_kind_of_data_is_read_by_training_and_drawn_the_same_twice(kind: str):
    rows = list(KINDS[kind](SAMPLES))
    assert len(rows) > 30
    assert rows == list(KINDS[kind](SAMPLES))
    for row in rows:
        assert group_from_row(row).responses


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("last: owl fox", "fox", 1.0),
        ("last: owl fox", "fox.", 1.0),
        ("last: owl fox", "fog", 1 / 3),  # two of three letters, halved
        ("last: owl fox", "", 0.0),
    ],
)
def test_a_reward_is_one_for_right_answers_and_below_a_half_for_others(
    prompt: str, answer: str, expected: float
):
    assert reward(prompt, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("fox hen owl", []),
        ("fox hem owl", [(6, 7)]),
        ("fox owl", [(4, 5)]),  # what is missing is flagged where it is missed
        ("fox hen", [(6, 7)]),
    ],
)
def test_what_differs_from_the_nearest_right_answer_is_flagged(
    answer: str, expected: list[tuple[int, int]]
):
    assert flagged("sort: owl fox hen", answer) == expected


def test_groups_leave_out_prompts_whose_samples_are_worth_the_same():
    equal = Samples(answers("right", "right"), {}, {}, {}, {}, seed=0)
    assert not list(groups(equal))


@pytest.mark.parametrize(
    ("pairs", "least", "most"),
    [
        (judged_pairs, 1.0, 1.0),
        (strongly_labelled_pairs, 0.85, 1.0),
        (weakly_labelled_pairs, 0.4, 0.8),
    ],
)
def test_a_labeller_is_as_often_right_as_it_is_told_to_be(pairs, least: float, most: float):
    rows = list(pairs(SAMPLES))
    right = [
        world.is_right(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows
    ]
    assert least <= sum(right) / len(right) <= most


def test_winners_of_worse_pairs_are_never_right():
    for row in worse_pairs(SAMPLES):
        prompt = row["prompt"][0]["content"]
        assert not world.is_right(prompt, row["chosen"][0]["content"])
        assert not world.is_right(prompt, row["rejected"][0]["content"])


def test_segments_cover_the_answer_and_score_the_flagged_words():
    for flags, parts in zip(spans(SAMPLES), segments(SAMPLES), strict=True):
        ends = [0, *(part["end"] for part in parts["segments"])]
        assert [part["start"] for part in parts["segments"]] == ends[:-1]
        assert ends[-1] == len(parts["completion"][0]["content"])
        assert any(part["score"] for part in parts["segments"]) == bool(flags["spans"])


def test_the_simulator_is_shown_flaws_as_its_prompt_has_it():
    shares: dict[str, list[bool]] = {}
    for row in hinted(900, seed=1):
        prompt, _, hint = row["prompt"][0]["content"].partition(" (")
        right = world.is_right(prompt, row["completion"][0]["content"])
        shares.setdefault(hint, []).append(right)
    means = {hint: sum(rights) / len(rights) for hint, rights in shares.items()}
    assert means["careful)"] > 0.9 > 0.75 > means[""] > 0.5 > 0.2 > means["careless)"]
