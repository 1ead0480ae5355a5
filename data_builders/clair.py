"""CLAIR: a model's own answer against its minimal revision by a stronger model.

Paper: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
in Alignment", arXiv 2408.06266. `direction=worsen` is the inverse: a good answer against its
minimal degradation.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from alignment.cli import parse, run
from alignment.core.groups import CHOSEN, REJECTED, Content, Group, Response
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_text
from alignment.llm.protocol import Sampling
from alignment.llm.rows import (
    PROMPT_COLUMNS,
    RESPONSE_COLUMNS,
    Reject,
    Row,
    prompt_of,
    response_of,
)
from data_builders.base import PROMPTS, BuildOptions, build_dataset

Direction = Literal["improve", "worsen"]

VERSION = "1"
"""Of the prompts and the parser together; rows made by different versions are told apart by it."""

_ANSWER_NAMES = {
    "improve": "revised[ _]answer|corrected[ _]student[ _]solution|corrected[ _]solution",
    "worsen": "worsened[ _]answer|worsened[ _]student[ _]solution|worsened[ _]solution",
}
_REASONING_NAMES = "(?:teacher[ _])?reasoning"


@dataclass(kw_only=True)
class Options(BuildOptions):
    """Options of `alignment build clair`; the input's rows need `prompt` and `response`."""

    direction: Direction = field(
        default="improve", metadata={"help": "improve: chosen is edited; worsen: rejected is"}
    )
    prompt: Path | None = field(
        default=None, metadata={"help": "prompt file with the fields prompt, response and fence"}
    )
    temperature: float = field(default=0.7, metadata={"help": "of the reviser"})
    max_tokens: int = field(default=4096, metadata={"help": "longest reply of the reviser"})
    seed: int = field(default=0, metadata={"help": "seed of the reviser's draws"})


class Revision(NamedTuple):
    """A reviser's reply, taken apart.

    Attributes:
        rationale: Why it edits as it does; may be empty.
        answer: The edited answer.
    """

    rationale: str
    answer: str


def parse_revision(text: str, direction: Direction = "improve") -> Revision:
    """Splits a reply, once, at the marker of its answer.

    A marker is a name such as `Revised answer` in one of these spellings, at the start of a line:
    a heading (`## ...`), bold (`**...**`), an identifier (`{...}`), or the name with a colon. The
    first of them counts; an answer that repeats it is kept whole. Where no line begins with a
    marker, the first bold one or identifier within a line counts.

    Args:
        text: The reply.
        direction: Which names count.

    Raises:
        Reject: `parse_failed` where there is no marker.
    """
    names = _ANSWER_NAMES[direction]
    marker = _marker(names).search(text) or re.search(
        rf"(?:\{{(?:{names})\}}|\*\*(?:{names})\*\*):?", text, re.IGNORECASE
    )
    if marker is None:
        raise Reject("parse_failed", "the reply has no marker of the answer", reply=text)
    before, after = text[: marker.start()].strip(), text[marker.end() :].strip()
    reasoning = _marker(_REASONING_NAMES).match(before)
    return Revision(before[reasoning.end() :].strip() if reasoning else before, after)


def builder(options: Options) -> Callable[[Row, LLM], Awaitable[Group]]:
    """The function that makes a pair of a row, ready for `build_dataset`.

    Raises:
        UserError: The prompt file cannot be used.
    """
    template = Template(
        options.prompt or PROMPTS / f"clair_{options.direction}.txt", {"prompt", "response"}
    )
    sampling = Sampling(options.temperature, max_tokens=options.max_tokens, seed=options.seed)

    async def build(row: Row, llm: LLM) -> Group:
        prompt, start = prompt_of(row), response_of(row)
        if row.get("finish_reason") == "length":
            raise Reject("truncated", "the start answer was cut off at its length limit")
        messages = template.user_message(prompt=as_text(prompt), response=start)
        reply = await llm.chat(messages, sampling)
        revision = parse_revision(reply.text, options.direction)
        if not revision.answer:
            raise Reject("empty", "the edited answer is empty", reply=reply.text)
        if revision.answer.split() == start.split():
            raise Reject("identical", "the reviser changed nothing", reply=reply.text)
        improve = options.direction == "improve"
        edited_role, kept_role = (CHOSEN, REJECTED) if improve else (REJECTED, CHOSEN)
        edited = Response(_like(prompt, revision.answer), role=edited_role, model=llm.model)
        kept = Response(_like(prompt, start), role=kept_role, model=row.get("model"))
        chosen, rejected = (edited, kept) if improve else (kept, edited)
        meta = {
            "builder": "clair",
            "version": VERSION,
            "direction": options.direction,
            "rationale": revision.rationale,
            "models": {"chosen": chosen.model, "rejected": rejected.model},
            "on_policy": {"chosen": chosen is kept, "rejected": rejected is kept},
            "sampling": sampling.settings(),
            "prompt_file": template.digest,
            "generation_prompt": messages[0]["content"],
        }
        return Group(prompt, (chosen, rejected), meta)

    return build


def main(argv: list[str]) -> None:
    """`alignment build clair`."""
    options = parse(Options, argv, "alignment build clair", __doc__)
    build_dataset(options, builder(options), needs=(PROMPT_COLUMNS, RESPONSE_COLUMNS))


def _marker(names: str) -> re.Pattern[str]:
    """A name at the start of a line, set apart by markup before it or by a colon after it."""
    return re.compile(
        rf"^[ \t>]*(?:[#*_`{{\[]+[ \t]*(?:{names})[ \t]*[*_`}}\]]*:?|(?:{names})[ \t]*:)[*_`]*",
        re.IGNORECASE | re.MULTILINE,
    )


def _like(prompt: Content, text: str) -> Content:
    """A response in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


if __name__ == "__main__":
    run(main)
