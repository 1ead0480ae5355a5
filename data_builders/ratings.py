"""Ratings of several answers by a judge in one call: shown in random order, and mapped back."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alignment.core.groups import Content
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_text
from alignment.llm.protocol import Reply, Sampling
from alignment.llm.rows import Reject
from data_builders.base import PROMPTS
from eval.judge import Judge, VerdictError

LOWEST, HIGHEST = 1, 5
"""The scale: short, because the ratings make data and are not reported."""

_HEADING = re.compile(r"^\W*answer[ _](\d+)\W*$", re.IGNORECASE | re.MULTILINE)
_RATING = re.compile(r"^\W*rating\W*:[\s*_]*(\d+|n/?a)[\s*_]*$", re.IGNORECASE | re.MULTILINE)
_RATIONALE = re.compile(r"^\W*rationale\W*:[\s*_]*(.*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """What a judge says of one answer.

    Attributes:
        rating: From 1 to 5; None where the judge says N/A.
        rationale: Why.
    """

    rating: int | None
    rationale: str


class Rated(NamedTuple):
    """What a judge says of several answers.

    Attributes:
        blocks: In the order of the answers.
        order: The index of the answer that was shown first, second, ...
    """

    blocks: tuple[Block, ...]
    order: tuple[int, ...]

    def as_columns(self) -> dict[str, list[Any]]:
        """What to record."""
        return {
            "ratings": [block.rating for block in self.blocks],
            "rationales": [block.rationale for block in self.blocks],
            "order": list(self.order),
        }


def read_blocks(reply: Reply, count: int) -> tuple[Block, ...]:
    """The blocks of a reply, one for each answer in the order shown.

    A block is a line `Answer N`, a line `Rating: R` with a whole number from 1 to 5 or N/A, and a
    line that begins with `Rationale:`. One block too many or too few spoils all: which rating
    belongs to which answer would be a guess.

    Args:
        reply: The judge's.
        count: How many answers were shown.

    Raises:
        ValueError: There are other blocks than one for each answer, or one cannot be read.
    """
    parts = _HEADING.split(reply.text)[1:]
    blocks = {int(number): text for number, text in zip(parts[::2], parts[1::2], strict=True)}
    if len(parts) != 2 * count or sorted(blocks) != list(range(1, count + 1)):
        raise ValueError(f"{len(parts) // 2} blocks for {count} answers")
    return tuple(_read_block(blocks[number]) for number in sorted(blocks))


@dataclass(frozen=True)
class Rater:
    """A judge that rates answers.

    Attributes:
        template: A prompt file with the fields `prompt`, `aspect` and `answers`.
        sampling: How the judge answers.
        seed: Of the order in which answers are shown.
    """

    template: Template
    sampling: Sampling
    seed: int

    @classmethod
    def of(cls, prompt_file: Path | None, max_tokens: int, seed: int) -> Rater:
        """A rater that answers greedily.

        Args:
            prompt_file: The one that comes along by default.
            max_tokens: Longest reply of the judge.
            seed: Of the order in which answers are shown.

        Raises:
            UserError: The prompt file cannot be used.
        """
        template = Template(prompt_file or PROMPTS / "ratings.txt", {"prompt", "aspect", "answers"})
        return cls(template, Sampling(temperature=0.0, max_tokens=max_tokens), seed)

    async def rate(self, judge: LLM, prompt: Content, answers: Sequence[str], aspect: str) -> Rated:
        """Rates answers in one call, shown in an order of the seed, the prompt and the aspect.

        Raises:
            Reject: `unparseable`, with the judge's words; or the outcome of a call without answer.
        """
        asked = as_text(prompt)
        order = list(range(len(answers)))
        random.Random(f"{self.seed}\0{asked}\0{aspect}").shuffle(order)
        shown = {f"answer_{place}": answers[index] for place, index in enumerate(order, 1)}
        asking = Judge(judge, self.template, partial(read_blocks, count=len(order)), self.sampling)
        try:
            blocks, _ = await asking.ask(prompt=asked, aspect=aspect, answers=shown)
        except VerdictError as error:
            told = f"the judge gave no ratings of {len(order)} answers that can be read"
            raise Reject(error.fault, told, reply=error.text) from None
        return Rated(tuple(blocks[order.index(index)] for index in range(len(order))), tuple(order))

    def settings(self) -> Mapping[str, Any]:
        """What to record beside ratings."""
        return {
            "prompt_file": self.template.digest,
            "sampling": self.sampling.settings(),
            "seed": self.seed,
        }


def _read_block(text: str) -> Block:
    ratings, rationale = _RATING.findall(text), _RATIONALE.search(text)
    if len(ratings) != 1 or rationale is None:
        raise ValueError("a block needs a line with a rating and one with its rationale")
    rating = int(ratings[0]) if ratings[0].isdigit() else None
    if rating is not None and not LOWEST <= rating <= HIGHEST:
        raise ValueError(f"the rating {rating} is not between {LOWEST} and {HIGHEST}")
    return Block(rating, rationale[1].strip())
