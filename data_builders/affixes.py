"""Contrastive prompts: one conversation under two short descriptions of the coming turn.

Paper: "RLCD: Reinforcement Learning from Contrastive Distillation for Language Model Alignment",
arXiv 2307.12950.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from alignment.cli import UserError, unknown
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_text
from alignment.llm.protocol import Message, Prompt, Reply, Request
from alignment.llm.rows import PROMPT_COLUMNS, Reject
from data_builders.base import PROMPTS, BuildOptions
from data_builders.pairs import DrawOptions
from data_builders.transcript import Conversation, clean

COLUMNS = (*PROMPT_COLUMNS, "chosen", "rejected")
"""Where a row's conversation may stand."""


@dataclass(kw_only=True)
class AffixOptions(DrawOptions, BuildOptions):
    """Options of builders that draw answers under affixes; the input's rows need `prompt`."""

    attribute: str = field(
        default="harmlessness",
        metadata={"help": "harmlessness, helpfulness, outline, or a YAML file of affix pairs"},
    )
    format: Literal["chat", "complete"] = field(
        default="complete",
        metadata={"help": "complete: affixes behind the speaker's label; chat: as system messages"},
    )
    system_prompt: Path | None = field(
        default=None,
        metadata={"help": "system message of `format: chat`, with the fields affix and earlier"},
    )
    max_tokens: int = field(default=300, metadata={"help": "longest answer, tokens"})
    resamples: int = field(
        default=5, metadata={"help": "how often an answer that cannot be cleaned is drawn anew"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resamples < 0:
            raise ValueError(f"`resamples` is {self.resamples}; it must be at least 0")


class Affix(NamedTuple):
    """A pair of descriptions that differ in one attribute.

    Attributes:
        place: Its index in the file.
        positive: Of a turn that shows the attribute, such as `a kind reply`.
        negative: Of one that does not.
        question: What to ask a judge who is to tell them apart.
    """

    place: int
    positive: str
    negative: str
    question: str


def read_affixes(attribute: str) -> list[Affix]:
    """The affix pairs of an attribute.

    Args:
        attribute: A name that comes along, or a YAML file: a list of mappings with `positive`,
            `negative` and `question`.

    Raises:
        UserError: There is no such attribute, or the file holds something else.
    """
    path = Path(attribute)
    if path.suffix not in (".yaml", ".yml"):
        path = PROMPTS / f"affixes_{attribute}.yaml"
        if not path.is_file():
            known = [file.stem.partition("_")[2] for file in PROMPTS.glob("affixes_*.yaml")]
            raise unknown("attribute", attribute, known)
    try:
        pairs: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        affixes = [Affix(index, **_words(pair)) for index, pair in enumerate(pairs)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError):
        affixes = []
    if not affixes:
        raise UserError(
            f"{path} must hold a list of affix pairs, each with `positive`, `negative` and "
            "`question`, all of them text"
        )
    return affixes


class Drawn(NamedTuple):
    """An answer that passed the cleaning.

    Attributes:
        text: The answer.
        sample: Which draw it was; those before it failed.
    """

    text: str
    sample: int


class Affixes:
    """Draws answers to conversations under affixes.

    Args:
        options: Which affixes, and how to draw.

    Raises:
        UserError: The affixes or the system message cannot be used.
    """

    def __init__(self, options: AffixOptions) -> None:
        self._options = options
        self._affixes = read_affixes(options.attribute)
        path = options.system_prompt or PROMPTS / "affix_system.txt"
        self._system = Template(path, {"affix", "earlier"})

    @property
    def tries(self) -> int:
        """How often an answer is drawn at most."""
        return self._options.resamples + 1

    def of(self, conversation: Conversation) -> tuple[Affix, random.Random]:
        """The affix pair of a conversation, and the generator of its further draws.

        They depend on the seed and the prompt, and on no other row.
        """
        rng = random.Random(f"{self._options.seed}\0{as_text(conversation.prompt)}")
        return rng.choice(self._affixes), rng

    def prompt(self, conversation: Conversation, own: str = "", earlier: str = "") -> Prompt:
        """What an answer is drawn from: the conversation as text or as messages.

        Args:
            conversation: The plain conversation.
            own: Describes the turn that is to come.
            earlier: Describes every turn that the assistant has had.
        """
        if self._options.format == "complete":
            return conversation.as_transcript(own, earlier)
        if not own:
            return conversation.messages
        system = self._system.render(affix=own, earlier=earlier if conversation.replies else "")
        return _with_system(conversation.messages, system)

    async def draw(self, llm: LLM, prompt: Prompt, first: int = 0) -> Drawn:
        """An answer that passes the cleaning, drawn anew where one fails.

        A continuation of text is cleaned by `clean`; a chat's answer must have ended by itself.

        Args:
            llm: The model.
            prompt: From `prompt`.
            first: The first sample's index, for several answers to one prompt.

        Raises:
            Reject: No draw passed; the reason is the last one's.
            CallError: The model refused or could not be asked.
        """
        replies = []
        for sample in range(first, first + self.tries):
            verb = self._options.format
            request = Request(verb, prompt, (), self._options.sampling, sample)
            reply = await llm.ask(request, keep_truncated=True)
            replies.append(reply.text)
            try:
                return Drawn(clean(reply.text) if verb == "complete" else _ended(reply), sample)
            except Reject as error:
                fault = error
        told = f"none of {len(replies)} draws can be used; of the last one: {fault}"
        raise Reject(fault.reason, told, replies=replies)


def _ended(reply: Reply) -> str:
    """The answer of a chat that ended by itself.

    Raises:
        Reject: `truncated` or `empty`.
    """
    if reply.outcome == "truncated":
        raise Reject("truncated", "the answer was cut off at its length limit")
    if not reply.text.strip():
        raise Reject("empty", "the answer is empty")
    return reply.text.strip()


def _with_system(messages: list[Message], words: str) -> list[Message]:
    """A conversation with words in its system message, after those it has."""
    if messages[0]["role"] == "system":
        words = f"{messages[0]['content']}\n\n{words}"
        messages = messages[1:]
    return [{"role": "system", "content": words}, *messages]


def _words(pair: dict[str, Any]) -> dict[str, str]:
    """A pair whose values are text; TypeError otherwise."""
    if not all(isinstance(value, str) and value.strip() for value in pair.values()):
        raise TypeError("an affix is text")
    return pair
