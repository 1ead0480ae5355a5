"""Stronger preferred: a model's own answer against a stronger model's, without judge or revision.

Paper: the ablation of minimality in "Anchored Preference Optimization and Contrastive Revisions:
Addressing Underspecification in Alignment", arXiv 2408.06266. There it harmed the model under
contrastive losses: a good winner is not enough.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from alignment.cli import parse, run
from alignment.core.groups import Group
from alignment.llm.engine import LLM
from alignment.llm.rows import PROMPT_COLUMNS, RESPONSE_COLUMNS, Row, prompt_of, response_of
from data_builders.base import BuildOptions, build_dataset
from data_builders.pairs import DrawOptions, Side, draw, pair_of, refuse_truncated

VERSION = "1"


@dataclass(kw_only=True)
class Options(DrawOptions, BuildOptions):
    """Options of `alignment build stronger_preferred`.

    The input's rows need `prompt` and `response`; `--model` is the stronger model.
    """


def builder(options: Options) -> Callable[[Row, LLM], Awaitable[Group]]:
    """The function that makes a pair of a row, ready for `build_dataset`."""

    async def build(row: Row, llm: LLM) -> Group:
        prompt, own = prompt_of(row), response_of(row)
        refuse_truncated(row)
        reply = await draw(llm, prompt, options)
        return pair_of(
            prompt,
            chosen=Side(reply.text, llm.model, on_policy=False),
            rejected=Side(own, row.get("model"), on_policy=True),
            meta={
                "builder": "stronger_preferred",
                "version": VERSION,
                "sampling": options.sampling.settings(),
            },
        )

    return build


def main(argv: list[str]) -> None:
    """`alignment build stronger_preferred`."""
    options = parse(Options, argv, "alignment build stronger_preferred", __doc__)
    build_dataset(options, builder(options), needs=(PROMPT_COLUMNS, RESPONSE_COLUMNS))


if __name__ == "__main__":
    run(main)
