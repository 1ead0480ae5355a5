"""How each strategy of PopAlign makes the two sides of a pair.

Paper: "PopAlign: Diversifying Contrasting Patterns for a More Comprehensive Alignment",
arXiv 2410.13785.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from alignment.cli import UserError, load_yaml, unknown
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_messages
from alignment.llm.protocol import Message, Prompt, Sampling
from alignment.llm.rows import Reject
from data_builders.answers import AnswerFile
from data_builders.base import PROMPTS
from data_builders.markers import split_reply
from data_builders.pairs import Side

Strategy = Literal[
    "prefix", "demonstration", "elicitive", "parameter_count", "leaderboard", "refine"
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

SOURCES: Mapping[str, tuple[str, str]] = {
    "parameter_count": ("larger", "smaller"),
    "leaderboard": ("higher", "lower"),
}
"""The strategies between models: whose answers are chosen, and whose are rejected."""


Source: TypeAlias = "LLM | AnswerFile"


class Contrast(NamedTuple):
    """Two texts, one for each side.

    Attributes:
        positive: For the chosen side.
        negative: For the rejected side.
    """

    positive: str
    negative: str


class Demonstration(NamedTuple):
    """A question that is answered before the conversation begins.

    Attributes:
        question: Of a user.
        positive: The answer that is shown for the chosen side.
        negative: The one for the rejected side.
    """

    question: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Wording:
    """What is said to contrast two prompts.

    Attributes:
        prefix: Stands before the last user's message.
        elicitive: Names the kind of answer that is to be planned and written.
        demonstrations: Turns before the conversation.
        refine: Asks for a better version of an answer.
    """

    prefix: Contrast
    elicitive: Contrast
    demonstrations: tuple[Demonstration, ...]
    refine: str


def read_wording(wording: str) -> Wording:
    """A wording that comes along, or that of a YAML file of the same form.

    Raises:
        UserError: There is no such wording, or something is missing in the file.
    """
    path = Path(wording)
    if path.suffix not in (".yaml", ".yml"):
        path = PROMPTS / f"popalign_{wording}.yaml"
        if not path.is_file():
            known = [file.stem.partition("_")[2] for file in PROMPTS.glob("popalign_*.yaml")]
            raise unknown("wording", wording, known)
    said: dict[str, Any] = load_yaml(path)
    try:
        return Wording(
            Contrast(**said["prefix"]),
            Contrast(**said["elicitive"]),
            tuple(Demonstration(**shown) for shown in said["demonstrations"]),
            said["refine"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: {error}; a wording has `prefix` and `elicitive`, each with `positive` and "
            "`negative`, `demonstrations` with `question` besides, and `refine`"
        ) from None


class Contrasts:
    """Makes the two sides of a pair by any of the strategies.

    Args:
        wording: As for `read_wording`.
        sampling: How answers are drawn.

    Raises:
        UserError: The wording cannot be used.
    """

    def __init__(self, wording: str, sampling: Sampling) -> None:
        self._said = read_wording(wording)
        self._elicitive = Template(PROMPTS / "popalign_elicitive.txt", {"prompt", "kind"})
        self._sampling = sampling

    async def sides(
        self, strategy: Strategy, prompt: Prompt, sources: Mapping[str, Source]
    ) -> tuple[Side, Side]:
        """The chosen and the rejected side.

        Args:
            strategy: How they differ.
            prompt: The plain prompt.
            sources: `generator`, and those that `SOURCES` names for the strategy.

        Raises:
            Reject: A side cannot be used.
            CallError: A model refused, was cut off, or could not be asked.
        """
        plain = list(as_messages(prompt))
        if strategy in SOURCES:
            made = [self._answer(sources[name], plain) for name in SOURCES[strategy]]
            # What others say to a prompt is not what the model that is trained says.
            chosen, rejected = [
                side._replace(on_policy=False) for side in await asyncio.gather(*made)
            ]
            return chosen, rejected
        generator = sources["generator"]
        if strategy == "refine":
            return await self._refined(generator, plain)
        drawn = [self._drawn(generator, asked, strategy) for asked in self._asked(strategy, plain)]
        chosen, rejected = await asyncio.gather(*drawn)
        return chosen, rejected

    def _asked(self, strategy: Strategy, plain: list[Message]) -> list[list[Message]]:
        """The conversations that a strategy between prompts has answered, chosen side first."""
        if strategy == "demonstration":
            shown = self._said.demonstrations
            answers = [d.positive for d in shown], [d.negative for d in shown]
            return [_after_shots(plain, [d.question for d in shown], side) for side in answers]
        last = plain[-1]["content"]
        if not isinstance(last, str):
            raise Reject(
                "bad_type", "the last message of the prompt holds something else than text"
            )
        if strategy == "prefix":
            words = [f"{prefix}\n\n{last}" for prefix in self._said.prefix]
        else:
            kinds = self._said.elicitive
            words = [self._elicitive.render(prompt=last, kind=kind) for kind in kinds]
        return [[*plain[:-1], {**plain[-1], "content": text}] for text in words]

    async def _drawn(self, source: Source, messages: list[Message], strategy: Strategy) -> Side:
        """A side that is drawn from another prompt than the plain one."""
        side = await self._answer(source, messages)
        if strategy == "elicitive":
            parts = split_reply(side.text, "response", "thoughts?", "## Response")
            side = side._replace(text=parts.answer)
        return side._replace(on_policy=False, generation_prompt=messages)

    async def _refined(self, source: Source, plain: list[Message]) -> tuple[Side, Side]:
        """What a model makes of its answer to the plain prompt, and that answer."""
        first = await self._answer(source, plain)
        asked = [*plain, _turn("assistant", first.text), _turn("user", self._said.refine)]
        second = await self._answer(source, asked)
        return second._replace(on_policy=False, generation_prompt=asked), first

    async def _answer(self, source: Source, messages: list[Message]) -> Side:
        """What a model says to a conversation, or what a file holds of it."""
        if isinstance(source, AnswerFile):
            return source.answer(messages)
        reply = await source.chat(messages, self._sampling)
        return Side(reply.text, source.model, on_policy=True)


def _after_shots(
    plain: list[Message], questions: Sequence[str], answers: Sequence[str]
) -> list[Message]:
    """A conversation with turns before it, after its system message."""
    start = 1 if plain[0]["role"] == "system" else 0
    shots = [
        _turn(role, text)
        for shot in zip(questions, answers, strict=True)
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ]
    return [*plain[:start], *shots, *plain[start:]]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
