"""Soft preferences from the log-probs of two letters."""

import asyncio
import math
from pathlib import Path

import pytest

from alignment.llm.engine import LLM
from alignment.llm.local import LocalBackend
from alignment.llm.program import FakeLLM
from alignment.llm.protocol import Reply
from alignment.llm.rows import Reject
from data_builders.letters import LETTERS, OPENED, letter_preference


def test_two_scored_letters_give_their_softmax():
    """Log-probs -1 and -2, the second in two tokens: 1 / (1 + e^-1) = 0.7311."""
    llm = FakeLLM([Reply(logps=((-1.0,), (-1.5, -0.5)))])
    preference = asyncio.run(letter_preference(llm, "text", "score", "complete"))
    assert preference == pytest.approx(0.7310585786)
    assert llm.requests[0].prompt == f"text{OPENED}"
    assert llm.requests[0].continuations == ("A", "B")


@pytest.mark.parametrize(
    ("top", "preference"),
    [
        ({"A": math.log(0.6), "B": math.log(0.2), "C": math.log(0.2)}, 0.75),
        ({"A": math.log(0.2), " A": math.log(0.1), "B\n": math.log(0.1)}, 0.75),
        ({" B": math.log(0.9), "a": math.log(0.1)}, 0.0),
        ({"A": -2000.0, "the": 0.0}, 1.0),
    ],
)
def test_letters_among_the_likeliest_tokens_count_with_white_space(
    top: dict[str, float], preference: float
):
    llm = FakeLLM([Reply("A", "length", top_logprobs=(top,))])
    made = asyncio.run(letter_preference(llm, "text", "top_logprobs", "chat"))
    assert made == pytest.approx(preference)
    (request,) = llm.requests
    assert (request.verb, request.sampling.max_tokens) == ("chat", 1)
    assert request.prompt == [{"role": "user", "content": "text"}]


@pytest.mark.parametrize("reply", [Reply("Hm", top_logprobs=({"Hm": 0.0},)), Reply("A")])
def test_a_reply_without_letters_is_no_preference(reply: Reply):
    with pytest.raises(Reject) as caught:
        asyncio.run(letter_preference(FakeLLM([reply]), "text", "top_logprobs", "complete"))
    assert caught.value.reason == "unjudged"


def test_a_model_in_this_process_scores_letters(model_dir: Path):
    """Its preference is that of its two log-probs."""

    async def ask(llm: LLM) -> tuple[float, float, float]:
        (first,), (second,) = await llm.score(f"text{OPENED}", LETTERS)
        return await letter_preference(llm, "text", "score", "complete"), first, second

    preference, first, second = asyncio.run(ask(LLM(LocalBackend(str(model_dir)))))
    assert preference == pytest.approx(1 / (1 + math.exp(second - first)))
    assert 0 < preference < 1
