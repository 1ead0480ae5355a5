"""Answers drawn for pairs, and pairs whose sides tell where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from alignment.core.groups import CHOSEN, REJECTED, Content, Group, Response
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_messages
from alignment.llm.protocol import Prompt, Reply, Request, Sampling
from alignment.llm.rows import Reject, Row


@dataclass(kw_only=True)
class SamplingOptions:
    """How a builder draws answers; its options inherit from these too."""

    temperature: float = field(default=1.0, metadata={"help": "of the answers; 0 is greedy"})
    top_p: float | None = field(default=None, metadata={"help": "probability mass to draw from"})
    top_k: int | None = field(default=None, metadata={"help": "number of tokens to draw from"})
    max_tokens: int = field(default=2048, metadata={"help": "longest answer, tokens"})
    seed: int = field(default=0, metadata={"help": "seed of all draws"})
    extra: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "further fields of a request, as the server names them"},
    )

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(
            *(self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed),
            extra=self.extra,
        )


@dataclass(kw_only=True)
class DrawOptions(SamplingOptions):
    """The same for a builder that also takes models without a chat template."""

    format: Literal["chat", "complete"] = field(
        default="chat",
        metadata={"help": "whether a text prompt is a user's message or a text to go on with"},
    )


class Side(NamedTuple):
    """One side of a pair.

    Attributes:
        text: The answer.
        model: Who wrote it.
        on_policy: Whether the model asked by the builder drew it from the plain prompt.
        generation_prompt: What it was drawn from, None where the builder did not draw it.
        reward: A label, higher is better; None where there is none.
    """

    text: str
    model: str | None
    on_policy: bool
    generation_prompt: Prompt | None = None
    reward: float | None = None


async def draw(llm: LLM, prompt: Prompt, options: DrawOptions, sample: int = 0) -> Reply:
    """An answer to a prompt, or what follows a text where `options.format` says so.

    Raises:
        CallError: The model refused, was cut off, or could not be asked.
    """
    if options.format == "complete" and isinstance(prompt, str):
        request = Request("complete", prompt, (), options.sampling, sample)
    else:
        request = Request("chat", as_messages(prompt), (), options.sampling, sample)
    return await llm.ask(request)


def refuse_truncated(row: Row) -> None:
    """Refuses an answer from a file that was cut off.

    Raises:
        Reject: `truncated` where `finish_reason` says so.
    """
    if row.get("finish_reason") == "length":
        raise Reject("truncated", "the answer was cut off at its length limit")


def like(prompt: Content, text: str) -> Content:
    """A response in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def pair_of(prompt: Content, chosen: Side, rejected: Side, meta: Mapping[str, Any]) -> Group:
    """A pair under its plain prompt, with models, on-policy flags and generation prompts in `meta`.

    Args:
        prompt: What the pair is to be trained on; never what was added to it while generating.
        chosen: The better side.
        rejected: The worse side.
        meta: What else to keep.

    Raises:
        Reject: `empty` where a side has no words, `identical` where both have the same.
    """
    sides = {"chosen": chosen, "rejected": rejected}
    for name, side in sides.items():
        if not side.text.strip():
            raise Reject("empty", f"the {name} answer is empty")
    if chosen.text.split() == rejected.text.split():
        raise Reject("identical", "chosen and rejected are the same text", reply=chosen.text)
    told = {
        **meta,
        "models": {name: side.model for name, side in sides.items()},
        "on_policy": {name: side.on_policy for name, side in sides.items()},
    }
    if any(side.generation_prompt is not None for side in sides.values()):
        told["generation_prompt"] = {name: side.generation_prompt for name, side in sides.items()}
    responses = tuple(
        Response(like(prompt, side.text), side.reward, role, model=side.model)
        for side, role in ((chosen, CHOSEN), (rejected, REJECTED))
    )
    return Group(prompt, responses, told)
