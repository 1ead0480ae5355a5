"""Examples before a prompt, for base models: constant ones of style, or those most like it.

Constant examples show how answers are written, in the manner of URIAL, "The Unlocking Spell on Base
LLMs: Rethinking Alignment via In-Context Learning", arXiv 2312.01552. Retrieved ones are those of
"In-Context Alignment: Chat with Vanilla Language Models Before Fine-Tuning", arXiv 2308.04275.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.cli import UserError, load_yaml
from alignment.core.rows import read_rows
from alignment.decoding.retrieval import Retriever
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Prompt
from alignment.llm.rows import Reject, prompt_of, response_of

STYLISTIC = Path(__file__).parent / "examples" / "stylistic.yaml"
_QUESTION, _ANSWER = "## Question", "## Answer"
STOP = f"\n{_QUESTION}"
"""Where a base model goes on to ask itself the next question."""


@dataclass(frozen=True)
class Example:
    """A prompt with an answer as it should be."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class Examples:
    """What stands before a prompt.

    Attributes:
        preamble: What kind of text it is, where no system prompt says it; empty for none.
        examples: All examples.
        shots: How many of them are shown, where a retriever chooses them.
        retriever: Chooses the examples for a prompt; None where they are constant.
    """

    preamble: str
    examples: Sequence[Example]
    shots: int = 0
    retriever: Retriever | None = None

    def before(self, prompt: Prompt, system: str | None = None) -> str:
        """The text that a base model is to complete: examples, then the prompt, then its answer.

        Args:
            prompt: What is asked.
            system: Takes the place of the preamble; None leaves it.
        """
        preamble = self.preamble if system is None else system
        shown = [_section(example.prompt, example.response) for example in self._chosen(prompt)]
        return "\n\n".join([*filter(None, [preamble]), *shown, _section(prompt)])

    def settings(self) -> dict[str, Any]:
        """What the choice depends on beside the prompt, for records."""
        parts = [self.preamble, *((as_text(e.prompt), e.response) for e in self.examples)]
        found = {"examples": hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}
        if self.retriever is None:
            return found
        return {**found, "shots": self.shots, "retriever": self.retriever.name}

    def _chosen(self, prompt: Prompt) -> Sequence[Example]:
        """Retrieved examples, the one most like the prompt last; never the prompt's own."""
        if self.retriever is None:
            return self.examples
        asked = as_text(prompt)
        ranked = (self.examples[index] for index in self.retriever.ranked(asked))
        others = [example for example in ranked if as_text(example.prompt) != asked]
        return others[: self.shots][::-1]


def stylistic() -> Examples:
    """The constant examples of this project."""
    found = load_yaml(STYLISTIC)
    return Examples(found["preamble"], [Example(**example) for example in found["examples"]])


def read_demonstrations(path: str | Path) -> list[Example]:
    """The rows of a file as examples.

    Raises:
        UserError: A row has no prompt or no response, or there are none.
    """
    examples = []
    for name, row in read_rows(path):
        try:
            examples.append(Example(prompt_of(row), response_of(row)))
        except Reject as error:
            raise UserError(
                f"{name}: {error}; a demonstration has `prompt` and `response`"
            ) from None
    if not examples:
        raise UserError(f"{path} holds no rows; demonstrations have `prompt` and `response`")
    return examples


def _section(prompt: Prompt, response: str = "") -> str:
    """A conversation as questions and answers; what a system message says comes first."""
    parts: list[str] = []
    for message in as_messages(prompt):
        content = _text(message).strip()
        if message["role"] == "assistant":
            parts.append(f"{_ANSWER}\n{content}")
        elif message["role"] == "system":
            parts.append(content)
        else:
            parts.append(f"{_QUESTION}\n{content}")
    parts.append(f"{_ANSWER}\n{response.strip()}")
    return "\n\n".join(parts)


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise Reject("bad_type", "a message has parts; examples are put before text alone")
    return content
