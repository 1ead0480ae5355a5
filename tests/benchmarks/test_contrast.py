"""The builders' contrast on the small world: programs err as often as they say, cases agree."""

import random
from collections import Counter

import pytest

from alignment.core.groups import Group, group_from_row
from alignment.llm.protocol import Request
from alignment.quickstart import world
from benchmarks._contrast.case import Case, contrast, measure
from benchmarks._contrast.fallible import answer, answers, preference, task_in
from benchmarks.contrast import cases

TASK = "sort: owl fox hen"


def pair(chosen: str, rejected: str) -> Group:
    return group_from_row({"prompt": TASK, "chosen": chosen, "rejected": rejected})


def test_contrast_is_that_of_right_and_wrong():
    assert contrast(pair("fox hen owl", "owl")) == 1
    assert contrast(pair("owl", "fox hen owl")) == 0
    assert contrast(pair("fox hen owl", "fox hen owl.")) == contrast(pair("owl", "fox")) == 0.5
    scored = {"prompt": TASK, "responses": ["owl", "fox hen owl", "hen"], "rewards": [1, 3, 2]}
    assert contrast(group_from_row(scored)) == 1
    assert contrast(group_from_row({**scored, "rewards": [1, 1, 1]})) is None


def test_answers_are_right_in_exactly_their_share():
    rows = answers(200, 0, 0.65, "policy")
    assert sum(world.is_right(row["prompt"], row["response"]) for row in rows) == 130
    assert rows == answers(200, 0, 0.65, "policy")
    assert rows != answers(200, 0, 0.65, "other")


@pytest.mark.parametrize("right", [True, False])
def test_an_answer_is_as_asked_and_unlike_another(right: bool):
    rng = random.Random(0)
    for start in world.accepted(TASK):
        made = [answer(TASK, right=right, rng=rng, unlike=start) for _ in range(50)]
        assert all(world.is_right(TASK, text) == right for text in made)
        assert start not in made


def test_the_task_is_found_whatever_is_around_it():
    talk = [{"role": "system", "content": "count: a b"}, {"role": "user", "content": f"({TASK})"}]
    assert task_in(talk) == TASK
    with pytest.raises(ValueError, match="no task"):
        task_in("sort of")


def test_a_judge_errs_as_often_as_it_is_told():
    rng = random.Random(0)
    said = Counter(preference(TASK, "fox hen owl", "owl", 0.8, rng) for _ in range(5000))
    assert said["A"] / 5000 == pytest.approx(0.8, abs=0.03)
    assert preference(TASK, "owl", "hen", 0.8, rng) == "tie"


def test_random_numbers_are_those_of_the_request():
    requests = [Request("chat", TASK, sample=number) for number in range(3)]
    assert len({request.draw() for request in requests}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.builder}-{case.variant}")
def test_a_builder_contrasts_as_its_construction_predicts(case: Case):
    result = measure(case, prompts=400, seed=0)
    assert result.agrees, result
    assert result.error < 0.05
