"""Both orders, strict verdicts, and answers that try to speak to the judge."""

import asyncio
import dataclasses
import math

import pytest

from alignment.cli import UserError
from alignment.llm.program import FakeLLM
from alignment.llm.prompts import Template, as_messages, as_text, sections
from alignment.llm.protocol import CallError, Reply, Request
from eval.judge import (
    PROMPTS,
    RATING_FIELDS,
    Comparison,
    Judge,
    RewardJudge,
    VerdictError,
    compare,
    pairwise_judge,
    rate,
)
from eval.verdicts import Ratings, TokenPreference


def shown(request: Request) -> dict[str, str]:
    return sections(as_text(request.prompt))


def prefers_longer(request: Request) -> str:
    parts = shown(request)
    longer = "A" if len(parts["answer_A"]) > len(parts["answer_B"]) else "B"
    return f"It says more.\nVerdict: {longer}"


def compared(judge, answer: str, baseline: str) -> Comparison:
    return asyncio.run(compare(pairwise_judge(FakeLLM(judge)), "task", answer, baseline))


def test_a_preference_for_content_survives_both_orders():
    win = compared(prefers_longer, "a long answer", "short")
    assert (win.score, win.consistent) == (1.0, True)
    assert [vote.first for vote in win.votes] == ["answer", "baseline"]
    loss = compared(prefers_longer, "short", "a long answer")
    assert (loss.score, loss.consistent) == (0.0, True)


def test_a_preference_for_a_position_cancels():
    made = compared(lambda _: "Verdict: A", "one", "two")
    assert (made.score, made.consistent) == (0.5, False)
    assert [vote.preference for vote in made.votes] == [1.0, 0.0]


def test_identical_answers_tie_without_being_judged():
    llm = FakeLLM([])
    made = asyncio.run(compare(pairwise_judge(llm), "task", "the  same\n", "the same"))
    assert (made, llm.requests) == (Comparison(0.5, ()), [])


@pytest.mark.parametrize(
    ("answer", "fault", "text"),
    [
        ("I like both.", "unparseable", "I like both."),
        (Reply("no", "content_filter"), "refused", "fake refused: no"),
        (Reply("Verdict: A", "length"), "truncated", "fake was cut off at `max_tokens`"),
        (CallError("failed", "too long"), "failed", "too long"),
    ],
)
def test_an_unreadable_verdict_is_counted_and_not_scored(answer, fault: str, text: str):
    def judge(request: Request):
        if shown(request)["answer_A"] == "one":
            return "Verdict: A"
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = compared(judge, "one", "two")
    assert (made.score, made.consistent) == (None, None)
    assert [vote.preference for vote in made.votes] == [1.0, None]
    assert (made.votes[1].fault, made.votes[1].text) == (fault, text)


def test_asking_directly_raises_what_cannot_be_read():
    judge = pairwise_judge(FakeLLM(["hm"]))
    with pytest.raises(VerdictError) as caught:
        asyncio.run(judge.ask(prompt="p", first="a", second="b"))
    assert (caught.value.fault, caught.value.text) == ("unparseable", "hm")


def test_the_identity_names_model_and_prompt():
    judge = pairwise_judge(FakeLLM([]))
    identity = judge.identity()
    assert (identity["model"], identity["prompt"]) == ("fake", "pairwise.txt")
    assert identity["prompt_digest"] == judge.template.digest
    assert identity["sampling"] == {"temperature": 0.0}
    assert identity["verdict"] == "read_letter"


def test_one_order_can_be_asked_for():
    made = asyncio.run(
        compare(pairwise_judge(FakeLLM(["Verdict: A"])), "task", "one", "two", first="baseline")
    )
    assert (made.score, made.consistent) == (0.0, None)
    assert [vote.first for vote in made.votes] == ["baseline"]


def token_judge(answers, *, required: bool = False) -> Judge:
    template = Template(PROMPTS / "tokens.txt", {"prompt", "first", "second"})
    read = TokenPreference(("A", "B"), required)
    return Judge(FakeLLM(answers), template, read, keep_truncated=True)


def test_probabilities_of_both_orders_are_averaged():
    """P(answer) is .8 shown first and .6 shown second: .7; the judge agrees with itself."""
    first = {"A": math.log(0.8), "B": math.log(0.2)}
    second = {"A": math.log(0.4), "B": math.log(0.6)}
    replies = [
        Reply("A", "length", top_logprobs=(first,)),
        Reply("B", "length", top_logprobs=(second,)),
    ]
    made = asyncio.run(compare(token_judge(replies), "task", "one", "two"))
    assert made.score == pytest.approx(0.7)
    assert made.consistent
    assert [vote.weighted for vote in made.votes] == [True, True]
    assert made.as_row()["votes"][1]["logprobs"] == second


def test_a_server_without_logprobs_gives_hard_verdicts_that_are_told():
    made = asyncio.run(compare(token_judge([Reply("A"), Reply("B")]), "task", "one", "two"))
    assert made.score == 1.0
    assert [vote.weighted for vote in made.votes] == [False, False]


def test_a_server_without_logprobs_ends_a_job_that_requires_them():
    with pytest.raises(UserError, match="returned no log-probs"):
        asyncio.run(compare(token_judge([Reply("A")] * 2, required=True), "task", "one", "two"))


def test_a_verdict_that_cannot_be_read_is_asked_for_again():
    llm = FakeLLM(["hm", "well", "Verdict: A"])
    judge = dataclasses.replace(pairwise_judge(llm), again=2)
    verdict, _ = asyncio.run(judge.ask(prompt="p", first="a", second="b"))
    assert verdict.value == 1.0
    assert [request.sample for request in llm.requests] == [0, 1, 2]


def test_a_system_message_comes_first():
    llm = FakeLLM(["A"])
    judge = dataclasses.replace(pairwise_judge(llm), system="Be fair.")
    asyncio.run(judge.ask(prompt="p", first="a", second="b"))
    assert [message["role"] for message in as_messages(llm.requests[0].prompt)] == [
        "system",
        "user",
    ]


def test_a_reward_model_prefers_by_the_difference_once():
    """Rewards are lengths: 5 - 3 = 2, sigmoid(2) = .8808; order is of no account."""
    llm = FakeLLM(lambda request: str(len(as_messages(request.prompt)[-1]["content"])))
    made = asyncio.run(compare(RewardJudge(llm), "task", "three", "one"))
    assert made.score == pytest.approx(1 / (1 + math.exp(-2)))
    assert [vote.weighted for vote in made.votes] == [True]
    assert {request.verb for request in llm.requests} == {"reward"}


@pytest.mark.parametrize("said", ["nan", "good", "inf"])
def test_a_reward_that_is_no_number_is_no_verdict(said: str):
    made = asyncio.run(compare(RewardJudge(FakeLLM(lambda _: said)), "task", "one", "two"))
    assert (made.score, made.votes[0].fault) == (None, "unparseable")


def rating_judge(answers) -> Judge[tuple[float, ...]]:
    return Judge(FakeLLM(answers), Template(PROMPTS / "ratings.txt", RATING_FIELDS), Ratings())


def test_several_answers_are_rated_in_one_call():
    def lengths(request: Request) -> str:
        parts = shown(request)
        numbers = [str(len(parts[f"answer_{n}"])) for n in (1, 2, 3)]
        return "All of them ...\nRatings: " + ", ".join(numbers)

    judge = rating_judge(lengths)
    assert asyncio.run(rate(judge, "task", ["one", "three", "four"])) == (3.0, 5.0, 4.0)


def test_as_many_ratings_as_answers_or_none():
    with pytest.raises(VerdictError, match="unparseable"):
        asyncio.run(rate(rating_judge(["Ratings: 1, 2"]), "task", ["a", "b", "c"]))
