"""A soft preference between two answers: the probability of the letter that names each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from alignment.llm.engine import LLM
from alignment.llm.prompts import Template
from alignment.llm.protocol import Prompt, Request, Sampling
from alignment.llm.rows import Reject
from data_builders.base import PROMPTS
from eval.verdicts import weigh

FIELDS = frozenset({"prompt", "question", "first", "second"})
OPENED = "\n\nMy choice is ("
"""What a text that is to be continued ends with, so that a letter comes next."""

LETTERS = ("A", "B")
"""What names the first and the second answer."""
_LIKELIEST = 20
"""Most log-probs that OpenAI's API and vLLM give by default."""


async def letter_preference(
    llm: LLM,
    text: str,
    how: Literal["score", "top_logprobs"],
    verb: Literal["chat", "complete"],
) -> float:
    """P(A) / (P(A) + P(B)) of the token that comes next.

    Args:
        llm: The model.
        text: The two answers and the question, from the prompt file `letters.txt`.
        how: `score` takes the log-probs of both letters after the text; `top_logprobs` looks for
            them among the likeliest tokens of an answer, where a letter that is missing counts as
            impossible.
        verb: For `top_logprobs`, whether the text is a user's message.

    Returns:
        The preference for the first answer, in [0, 1].

    Raises:
        Reject: `unjudged` where neither letter is among the likeliest tokens.
        CallError: The model could not be asked.
        UserError: The model's server gives no log-probs.
    """
    said: str | None
    if how == "score":
        logps = await llm.score(text + OPENED, LETTERS)
        said = None
        found = {letter: sum(tokens) for letter, tokens in zip(LETTERS, logps, strict=True)}
    else:
        prompt: Prompt = [{"role": "user", "content": text}] if verb == "chat" else text + OPENED
        sampling = Sampling(temperature=0.0, max_tokens=1, top_logprobs=_LIKELIEST)
        reply = await llm.ask(Request(verb, prompt, (), sampling), keep_truncated=True)
        if not reply.top_logprobs:
            raise Reject("unjudged", f"{llm.model} returned no log-probs", reply=reply.text)
        said, found = reply.text, _stripped(reply.top_logprobs[0])
    preference = weigh(found, LETTERS)
    if preference is None:
        raise Reject("unjudged", "neither letter is among the likeliest tokens", reply=said)
    return preference


def letters_template() -> Template:
    """The prompt file that shows a conversation, two answers and a question."""
    return Template(PROMPTS / "letters.txt", FIELDS)


def _stripped(tokens: Mapping[str, float]) -> dict[str, float]:
    """Log-probs by token without the white space around it: ` A` and `A` say the same."""
    merged: dict[str, float] = {}
    for token, logp in tokens.items():
        word = token.strip()
        merged[word] = _sum(merged[word], logp) if word in merged else logp
    return merged


def _sum(first: float, second: float) -> float:
    """The log of the sum of two probabilities."""
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))
