"""The critics of the small world answer the prompts of the builders."""

import pytest

from alignment.llm.prompts import Template
from alignment.llm.protocol import CallError, Reply, Request
from alignment.quickstart.critics import criticise, rate, rating
from data_builders.base import PROMPTS
from data_builders.judgments import read_verdict
from data_builders.ratings import read_blocks

TASK = "sort: owl fox hen"


@pytest.mark.parametrize(
    ("answer", "judgment"),
    [("fox hen owl.", None), ("fox owl hen", "It should be fox hen owl"), ("", "It should be")],
)
def test_a_critic_names_what_would_be_right_or_finds_no_fault(answer: str, judgment: str | None):
    template = Template(PROMPTS / "judgments.txt", {"prompt", "response", "word"})
    messages = template.user_message(prompt=TASK, response=answer, word="FLAWLESS")
    found = read_verdict(criticise(Request("chat", messages)), "FLAWLESS")
    assert found is None if judgment is None else str(found).startswith(judgment)


def test_a_rater_rates_every_answer_in_the_order_shown():
    template = Template(PROMPTS / "ratings.txt", {"prompt", "aspect", "answers"})
    answers = {"answer_1": "owl", "answer_2": "fox hen owl", "answer_3": "fox owl hen"}
    messages = template.user_message(prompt=TASK, aspect="all in all", answers=answers)
    blocks = read_blocks(Reply(rate(Request("chat", messages))), 3)
    assert [block.rating for block in blocks] == [rating(TASK, a) for a in answers.values()]
    one, two, three = (block.rating for block in blocks)
    assert two == 5
    assert one is not None
    assert three is not None
    assert one <= three < 5  # the nearer to a right answer, the better


def test_ratings_lie_between_one_and_five():
    assert rating(TASK, "fox hen owl.") == 5
    assert rating(TASK, "") == 1
    assert rating(TASK, "zzzzzz zzz zzz") == 1


def test_a_request_without_the_sections_is_a_failed_call():
    with pytest.raises(CallError, match="no section answer"):
        criticise(Request("chat", "[task 0123abcd]\nsort: owl fox\n[/task 0123abcd]"))
