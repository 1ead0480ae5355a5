"""CLAIR: a model's own answer against its minimal revision by a stronger model.

Paper: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
in Alignment", arXiv 2408.06266. `direction=worsen` is the inverse: a good answer against its
minimal degradation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignment.cli import parse, run
from alignment.core.groups import CHOSEN, REJECTED, Group, Response
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_messages, as_text
from alignment.llm.protocol import Sampling
from alignment.llm.rows import (
    PROMPT_COLUMNS,
    RESPONSE_COLUMNS,
    Reject,
    Row,
    prompt_of,
    response_of,
)
from data_builders.base import PROMPTS, BuildOptions, ModelAt, build_dataset
from data_builders.markers import Parts, split_reply
from data_builders.pairs import Side, like, refuse_truncated

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
    """Options of `alignment build clair`; the input's rows need `prompt` and `response`.

    Where a row has no response, `--policy-model` writes one.
    """

    direction: Direction = field(
        default="improve", metadata={"help": "improve: chosen is edited; worsen: rejected is"}
    )
    prompt: Path | None = field(
        default=None, metadata={"help": "prompt file with the fields prompt, response and fence"}
    )
    temperature: float = field(default=0.7, metadata={"help": "of the reviser"})
    max_tokens: int = field(default=4096, metadata={"help": "longest reply of the reviser"})
    seed: int = field(default=0, metadata={"help": "seed of all draws"})
    policy_model: str | None = field(
        default=None, metadata={"help": "model to be trained, which answers rows without an answer"}
    )
    policy_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    policy_temperature: float = field(default=1.0, metadata={"help": "of its answers"})
    policy_max_tokens: int = field(default=2048, metadata={"help": "its longest answer, tokens"})

    @property
    def policy_sampling(self) -> Sampling:
        """How the model to be trained answers."""
        return Sampling(self.policy_temperature, max_tokens=self.policy_max_tokens, seed=self.seed)


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


def builder(options: Options) -> Callable[..., Awaitable[Group]]:
    """The function that makes a pair of a row, ready for `build_dataset`.

    After the row it takes the reviser and, where there is one, the model to be trained.

    Raises:
        UserError: The prompt file cannot be used.
    """
    template = Template(
        options.prompt or PROMPTS / f"clair_{options.direction}.txt", {"prompt", "response"}
    )
    sampling = Sampling(options.temperature, max_tokens=options.max_tokens, seed=options.seed)

    async def build(row: Row, llm: LLM, *policies: LLM) -> Group:
        prompt = prompt_of(row)
        start = await _start(row, policies, options.policy_sampling)
        messages = template.user_message(prompt=as_text(prompt), response=start.text)
        reply = await llm.chat(messages, sampling)
        revision = parse_revision(reply.text, options.direction)
        if not revision.answer:
            raise Reject("empty", "the edited answer is empty", reply=reply.text)
        if revision.answer.split() == start.text.split():
            raise Reject("identical", "the reviser changed nothing", reply=reply.text)
        improve = options.direction == "improve"
        edited_role, kept_role = (CHOSEN, REJECTED) if improve else (REJECTED, CHOSEN)
        edited = Response(like(prompt, revision.answer), role=edited_role, model=llm.model)
        kept = Response(like(prompt, start.text), role=kept_role, model=start.model)
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
        if start.on_policy:
            meta["policy_sampling"] = options.policy_sampling.settings()
        return Group(prompt, (chosen, rejected), meta)

    return build


async def _start(row: Row, policies: Sequence[LLM], sampling: Sampling) -> Side:
    """The answer to be edited: the row's own, or that of the model to be trained.

    Raises:
        Reject: There is none, it is empty or was cut off.
        CallError: The model gave none.
    """
    if not policies or any(row.get(name) for name in RESPONSE_COLUMNS):
        refuse_truncated(row)
        return Side(response_of(row), row.get("model"), on_policy=False)
    (policy,) = policies
    reply = await policy.chat(as_messages(prompt_of(row)), sampling)
    if not reply.text.strip():
        raise Reject("empty", "the answer to be edited is empty")
    return Side(reply.text, policy.model, on_policy=True)


def main(argv: list[str]) -> None:
    """`alignment build clair`."""
    options = parse(Options, argv, "alignment build clair", __doc__)
    models, needs = {"generator": options.generator}, [PROMPT_COLUMNS, RESPONSE_COLUMNS]
    later = None
    if options.policy_model is not None:
        models["policy"] = ModelAt(options.policy_model, options.policy_url)
        needs, later = [PROMPT_COLUMNS], "revisions of answers"
    build_dataset(options, builder(options), models=models, needs=needs, later=later)


if __name__ == "__main__":
    run(main)
