"""Context distillation: answers drawn under RLCD's positive prompts alone, as data for SFT.

Paper: a baseline of "RLCD: Reinforcement Learning from Contrastive Distillation for Language Model
Alignment", arXiv 2307.12950.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from alignment.cli import parse, run
from alignment.core.groups import CHOSEN, Group, Response
from alignment.llm.engine import LLM
from alignment.llm.rows import Row
from data_builders.affixes import COLUMNS, Affixes, AffixOptions
from data_builders.base import build_dataset
from data_builders.pairs import like
from data_builders.transcript import Conversation

VERSION = "1"


@dataclass(kw_only=True)
class Options(AffixOptions):
    """Options of `alignment build context_distillation`; the input's rows need `prompt`."""


def builder(options: Options) -> Callable[[Row, LLM], Awaitable[Group]]:
    """The function that makes a prompt with its completion of a row, ready for `build_dataset`.

    It makes the calls that `alignment build rlcd` makes for the chosen side, so that both may share
    a ledger.

    Raises:
        UserError: A file of affixes or a prompt file cannot be used.
    """
    affixes = Affixes(options)

    async def build(row: Row, llm: LLM) -> Group:
        conversation = Conversation(row)
        affix, _ = affixes.of(conversation)
        asked = affixes.prompt(conversation, affix.positive, affix.negative)
        drawn = await affixes.draw(llm, asked)
        content = like(conversation.prompt, conversation.response(drawn.text))
        meta = {
            "builder": "context_distillation",
            "version": VERSION,
            "attribute": options.attribute,
            "affix": {"index": affix.place, "completion": affix.positive},
            "models": {"completion": llm.model},
            "on_policy": {"completion": False},
            "samples": {"completion": drawn.sample},
            "sampling": options.sampling.settings(),
            "generation_prompt": {"completion": asked},
        }
        response = Response(content, role=CHOSEN, model=llm.model)
        return Group(conversation.prompt, (response,), meta)

    return build


def main(argv: list[str]) -> None:
    """`alignment build context_distillation`."""
    options = parse(Options, argv, "alignment build context_distillation", __doc__)
    build_dataset(options, builder(options), needs=(COLUMNS,))


if __name__ == "__main__":
    run(main)
