"""Verdict types: what a judge's reply says, or a `ValueError` where it says nothing readable.

Each type is a function of one reply. A judge names one of them in its YAML, or a function of one's
own by dotted path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from alignment.cli import UserError
from alignment.llm.protocol import Reply

_LETTER = re.compile(r"\W*(?:verdict\W+)?(a|b|tie)\W*", re.IGNORECASE)
_LETTERS = {"a": 1.0, "b": 0.0, "tie": 0.5}
_NUMBER = r"(\d+(?:\.\d*)?)"
_RATINGS = (re.compile(rf"\[\[{_NUMBER}\]\]"), re.compile(rf"\[{_NUMBER}\]"))
_SEVERAL = re.compile(
    r"[^\w-]*(?:ratings?[^\w-]+)?((?:\d+(?:\.\d+)?[,;\s]+)*\d+(?:\.\d+)?)\W*", re.IGNORECASE
)


class Preference(NamedTuple):
    """A verdict on two answers.

    Attributes:
        value: For the answer that was shown first, in [0, 1]; one half is a tie.
        weighted: Whether it is the judge's probability rather than a word of it.
    """

    value: float
    weighted: bool = False


def read_letter(reply: Reply) -> Preference:
    """The preference in the last line of a reply: `Verdict: A`, `Verdict: B` or `Verdict: tie`.

    Only a line that holds a verdict and nothing else is one: what is said on the way to it, or
    quoted from an answer, is not.

    Raises:
        ValueError: The last line is no verdict.
    """
    match = _LETTER.fullmatch(_last_line(reply.text))
    if match is None:
        raise ValueError("the last line is no verdict")
    return Preference(_LETTERS[match[1].lower()])


def weigh(top_logprobs: Mapping[str, float], tokens: tuple[str, str]) -> float | None:
    """The preference for the first answer: P(first) / (P(first) + P(second)).

    AlpacaEval writes 2 minus this number. A token that is not among the likeliest counts as
    impossible.

    Args:
        top_logprobs: The likeliest tokens with their log-probs, nats.
        tokens: Those that name the first and the second answer, as the judge's tokenizer has them.

    Returns:
        The preference in [0, 1]; None where neither token is there.

    Raises:
        ValueError: A log-prob is not a number.
    """
    first, second = (top_logprobs.get(token, -math.inf) for token in tokens)
    if math.isnan(first) or math.isnan(second):
        raise ValueError("a log-prob is not a number")
    best = max(first, second)
    if best == -math.inf:
        return None
    first, second = math.exp(first - best), math.exp(second - best)
    return first / (first + second)


@dataclass(frozen=True)
class TokenPreference:
    """The preference in the log-probs of a reply's first token.

    Where there are none, because some servers ignore the wish without a word, the token itself is
    a hard verdict, which `Preference.weighted` tells.

    Attributes:
        tokens: What names the first and the second answer, each one token.
        required: Whether a reply without log-probs ends the job.
    """

    tokens: tuple[str, str]
    required: bool = False

    def __call__(self, reply: Reply) -> Preference:
        """Reads a reply.

        Raises:
            ValueError: The reply names neither answer.
            UserError: Log-probs are required and were ignored.
        """
        if reply.top_logprobs:
            value = weigh(reply.top_logprobs[0], self.tokens)
            if value is not None:
                return Preference(value, weighted=True)
        elif self.required:
            raise UserError(
                "the judge returned no log-probs, and this one requires them; ask a server that "
                "has them, or set `require_logprobs: false` for hard verdicts"
            )
        said = reply.text.strip()
        if said not in self.tokens:
            raise ValueError("the reply names neither answer")
        return Preference(float(said == self.tokens[0]))


def read_rating(text: str) -> float:
    """The rating in a reply: the first `[[n]]`, else the first `[n]`, as MT-Bench reads it.

    Raises:
        ValueError: There is none.
    """
    for pattern in _RATINGS:
        if match := pattern.search(text):
            return float(match[1])
    raise ValueError("no rating such as [[7]]")


@dataclass(frozen=True)
class Rating:
    """One rating, as `read_rating` finds it.

    Attributes:
        scale: The lowest and the highest rating; any other number is none.
    """

    scale: tuple[float, float] = (1.0, 10.0)

    def __call__(self, reply: Reply) -> float:
        """Reads a reply.

        Raises:
            ValueError: There is no rating on the scale.
        """
        return _on_scale(read_rating(reply.text), self.scale)


@dataclass(frozen=True)
class Ratings:
    """Several ratings, one for each answer shown: a last line such as `Ratings: 7, 3, 9`.

    Attributes:
        scale: The lowest and the highest rating; a line with any other number is none.
    """

    scale: tuple[float, float] = (1.0, 10.0)

    def __call__(self, reply: Reply) -> tuple[float, ...]:
        """Reads a reply.

        Raises:
            ValueError: The last line is not a list of ratings on the scale.
        """
        match = _SEVERAL.fullmatch(_last_line(reply.text))
        if match is None:
            raise ValueError("the last line holds no ratings")
        numbers = re.split(r"[,;\s]+", match[1])
        return tuple(_on_scale(float(number), self.scale) for number in numbers)


def _on_scale(rating: float, scale: tuple[float, float]) -> float:
    low, high = scale
    if not low <= rating <= high:
        raise ValueError(f"the rating {rating:g} is not between {low:g} and {high:g}")
    return rating


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
