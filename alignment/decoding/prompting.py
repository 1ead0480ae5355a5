"""What each pass reads for a row: the prompt, under system prompts or after examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from alignment.decoding.in_context import Examples, read_demonstrations, stylistic
from alignment.decoding.options import DecodingOptions
from alignment.decoding.retrieval import BM25, Retriever, SentenceEncoder
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Message, Prompt, Verb
from alignment.llm.rows import Reject, Row, prompt_of


class Asked(NamedTuple):
    """What a model is asked, and how: `chat` with messages, `complete` with text."""

    verb: Verb
    prompt: Prompt


@dataclass(frozen=True)
class Prompting:
    """The prompts of a run's passes.

    Attributes:
        chat: Whether text prompts are a user's message.
        system: System prompt of the first pass, None for none.
        second_system: System prompt of the second pass, None for none.
        second_column: Column of the second pass's prompt, None for the same as the first's.
        examples: What stands before prompts, None for nothing.
    """

    chat: bool
    system: str | None = None
    second_system: str | None = None
    second_column: str | None = None
    examples: Examples | None = None

    def first(self, row: Row) -> Asked:
        """What is answered.

        Raises:
            Reject: The row has no prompt.
        """
        return self._asked(prompt_of(row), self.system)

    def second(self, row: Row) -> Asked:
        """What a contrast sets against it.

        Raises:
            Reject: The row has no such prompt.
        """
        if self.second_column is None:
            return self._asked(prompt_of(row), self.second_system)
        if self.second_column not in row:
            raise Reject("no_second_prompt", f"the row has no column `{self.second_column}`")
        prompt = prompt_of({"prompt": row[self.second_column]})
        return self._asked(prompt, self.second_system)

    def plain(self, row: Row) -> Asked:
        """What a model is asked that nothing is done to.

        Raises:
            Reject: The row has no prompt.
        """
        return _under(None, prompt_of(row), self.chat)

    def settings(self) -> dict[str, Any]:
        """What is set, for records."""
        named = {name: getattr(self, name) for name in ("system", "second_system", "second_column")}
        examples = {} if self.examples is None else self.examples.settings()
        return {name: value for name, value in named.items() if value is not None} | examples

    def _asked(self, prompt: Prompt, system: str | None) -> Asked:
        if self.examples is not None:
            return Asked("complete", self.examples.before(prompt, system))
        return _under(system, prompt, self.chat)


def prompting(options: DecodingOptions, *, chat: bool) -> Prompting:
    """The prompts that options call for.

    A second pass that is another model, or reads another column, reads the same system prompt;
    elsewhere the system prompt is what the two differ in.

    Raises:
        UserError: The demonstrations or the sentence encoder cannot be read.
    """
    second_system = options.second_system
    if second_system is None and (options.amateur or options.second_column or options.soft_prompts):
        second_system = options.system
    return Prompting(
        chat=chat,
        system=options.system,
        second_system=second_system,
        second_column=options.second_column,
        examples=_examples(options),
    )


def _under(system: str | None, prompt: Prompt, chat: bool) -> Asked:
    """A prompt under a system prompt: a message of its own in a chat, before the text elsewhere."""
    if isinstance(prompt, str) and not chat:
        return Asked("complete", f"{system}\n\n{prompt}" if system else prompt)
    messages: list[Message] = [*as_messages(prompt)]
    if system and messages[0]["role"] == "system":
        system, messages = f"{system}\n\n{messages[0]['content']}", messages[1:]
    return Asked("chat", [{"role": "system", "content": system}, *messages] if system else messages)


def _examples(options: DecodingOptions) -> Examples | None:
    if options.in_context is None:
        return None
    if options.demonstrations is None:
        return stylistic()
    examples = read_demonstrations(options.demonstrations)
    texts = [as_text(example.prompt) for example in examples]
    retriever: Retriever
    if options.retriever == "bm25":
        retriever = BM25(texts)
    else:
        retriever = SentenceEncoder(options.retriever, texts, options.device)
    return Examples("", examples, options.shots, retriever)
