"""CLAIR: a model's own answer against its minimal revision by a stronger model.

Paper: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
in Alignment", arXiv 2408.06266. `direction=worsen` is the inverse: a good answer against its
minimal degradation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignment.cli import parse, run
from alignment.core.groups import CHOSEN, REJECTED, Group, Response
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
from data_builders.markers import Parts, split_reply
from data_builders.pairs import like, refuse_truncated

Direction = Literal["improve", "worsen"]

VERSION = "1"
"""Of the prompts and the parser together; rows made by different versions are told apart by it."""

_ANSWER = r"[ _-](?:student(?:\W?s)?[ _-])?(?:answer|solution|response)"
_ANSWER_NAMES = {
    "improve": f"(?:revised|corrected|improved){_ANSWER}",
    "worsen": f"(?:worsened|degraded){_ANSWER}",
}
_REASONING_NAMES = r"(?:teacher(?:\W?s)?[ _-])?reasoning"


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


def parse_revision(text: str, direction: Direction = "improve") -> Parts:
    """Splits a reviser's reply into why it edits as it does and the edited answer.

    Args:
        text: The reply.
        direction: Which names mark the answer, as `split_reply` reads them.

    Raises:
        Reject: `parse_failed` where there is no marker.
    """
    asked = "## Revised answer" if direction == "improve" else "## Worsened answer"
    return split_reply(text, _ANSWER_NAMES[direction], _REASONING_NAMES, asked)


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
        refuse_truncated(row)
        messages = template.user_message(prompt=as_text(prompt), response=start)
        reply = await llm.chat(messages, sampling)
        revision = parse_revision(reply.text, options.direction)
        if not revision.answer:
            raise Reject("empty", "the edited answer is empty", reply=reply.text)
        if revision.answer.split() == start.split():
            raise Reject("identical", "the reviser changed nothing", reply=reply.text)
        improve = options.direction == "improve"
        edited_role, kept_role = (CHOSEN, REJECTED) if improve else (REJECTED, CHOSEN)
        edited = Response(like(prompt, revision.answer), role=edited_role, model=llm.model)
        kept = Response(like(prompt, start), role=kept_role, model=row.get("model"))
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


if __name__ == "__main__":
    run(main)
