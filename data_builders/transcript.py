"""Conversations as one text: turns behind the labels `Human:` and `Assistant:`, as hh-rlhf has it.

A base model continues such a text; a label may carry a description of its turn before the colon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from alignment.llm.prompts import as_messages
from alignment.llm.protocol import Message
from alignment.llm.rows import Reject, Row, prompt_of

LABELS = {"user": "Human", "assistant": "Assistant"}
_ROLES = {label: role for role, label in LABELS.items()}
_DESCRIPTION = r"(?: ?\([^()\n]*\))?"
_TURN = re.compile(rf"(?:\A\s*|\n\n)(Human|Assistant){_DESCRIPTION}:")
_HUMAN = re.compile(rf"\bHuman{_DESCRIPTION}:")
_ASSISTANT = re.compile(rf"\bAssistant{_DESCRIPTION}:")
_ENDS = re.compile(r"</s>|<\|(?:endoftext|end_of_text|eot_id|im_end|end)\|>")
"""How tokenizers spell the end of a text, where a server leaves it in."""


class Conversation:
    """A row's prompt, as messages and as text.

    Args:
        row: With `prompt`: messages, a transcript, or a plain text that is one user's turn; or
            with `chosen` or `rejected` alone, whole conversations of hh-rlhf.

    Attributes:
        prompt: What to store: the prompt as it is given.
        messages: The turns, the last of them not the assistant's.

    Raises:
        Reject: There is no prompt, it holds more than text, or it ends with the assistant's turn.
    """

    def __init__(self, row: Row) -> None:
        given = _given(row)
        turns = _turns(given) if isinstance(given, str) else None
        self.messages: list[Message] = list(as_messages(given) if turns is None else turns)
        if not all(isinstance(message["content"], str) for message in self.messages):
            raise Reject("bad_type", "a message of the prompt holds something else than text")
        self.prompt = given
        self._separator = "" if turns is None else _separator(str(given))
        if not self.messages or self.messages[-1].get("role") == "assistant":
            raise Reject("prompt_ends_with_assistant", "the prompt ends with the assistant's turn")

    @property
    def replies(self) -> int:
        """How often the assistant has spoken."""
        return sum(message["role"] == "assistant" for message in self.messages)

    def as_transcript(self, last: str = "", earlier: str = "") -> str:
        """The conversation as text, up to the colon after which the assistant is to speak.

        Args:
            last: A description of the coming turn, set between the assistant's label and its colon.
            earlier: The same for every turn in which the assistant has spoken.
        """
        return "".join(self._lines(earlier)) + _label("assistant", last)

    def response(self, text: str) -> str:
        """A response as it is stored: what a transcript still needs before it comes along."""
        return self._separator + text

    def _lines(self, earlier: str) -> Iterator[str]:
        for message in self.messages:
            role, content = message["role"], message["content"].strip()
            if role not in LABELS:  # a system message has no speaker
                yield content
            else:
                yield f"{_label(role, earlier if role == 'assistant' else '')} {content}"


def clean(text: str) -> str:
    """The assistant's turn in what a base model wrote after its label.

    The rules of RLCD's authors: the next human turn must begin in it and is cut off, and the rest
    must hold a line break or an end of text. It is cut at its *last* line break, which drops the
    dangling separator, and at an end of text; of a repeated assistant's label, what follows the
    first counts.

    Raises:
        Reject: `no_next_turn`, `no_line_break` or `empty`.
    """
    human = _HUMAN.search(text)
    if human is None:
        raise Reject("no_next_turn", "the human's next turn does not begin in the continuation")
    turn = text[: human.start()]
    if "\n" not in turn and not _ENDS.search(turn):
        raise Reject("no_line_break", "the turn has neither a line break nor an end")
    if "\n" in turn:
        turn = turn[: turn.rindex("\n")]
    turn = _ENDS.split(turn, maxsplit=1)[0]
    if label := _ASSISTANT.search(turn):
        turn = turn[label.end() :]
    if not turn.strip():
        raise Reject("empty", "the turn is empty")
    return turn.strip()


def _given(row: Row) -> str | list[Message]:
    """The prompt of a row, or the beginning of a whole conversation."""
    whole = row.get("chosen") or row.get("rejected")
    if not row.get("prompt") and not row.get("instruction") and isinstance(whole, str):
        replies = [match for match in _TURN.finditer(whole) if match[1] == LABELS["assistant"]]
        if replies:
            return whole[: replies[-1].end()]
    return prompt_of(row)


def _turns(text: str) -> list[Message] | None:
    """The turns of a transcript without an open last one; None for any other text."""
    labels = list(_TURN.finditer(text))
    if not labels or text[: labels[0].start()].strip():
        return None
    ends = [*(label.start() for label in labels[1:]), len(text)]
    turns = [
        {"role": _ROLES[label[1]], "content": text[label.end() : end].strip()}
        for label, end in zip(labels, ends, strict=True)
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns


def _separator(transcript: str) -> str:
    """What stands between a transcript and the assistant's coming turn."""
    if not re.search(rf"Assistant{_DESCRIPTION}:\s*\Z", transcript):
        return f"{_label('assistant', '')} "
    return "" if transcript[-1].isspace() else " "


def _label(role: str, description: str) -> str:
    return f"\n\n{LABELS[role]}{f' ({description})' if description else ''}:"
