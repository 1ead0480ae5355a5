"""On-policy judge: two answers of the model to be trained, ordered by a judge.

Paper: a baseline of "Anchored Preference Optimization and Contrastive Revisions: Addressing
Underspecification in Alignment", arXiv 2408.06266. The judge sees both orders of the answers; a row
whose verdicts cancel out or cannot be read is rejected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from alignment.cli import parse, run
from alignment.core.groups import Group
from alignment.llm.engine import LLM
from alignment.llm.rows import PROMPT_COLUMNS, Row, prompt_of
from data_builders.base import BuildOptions, build_dataset
from data_builders.judging import PairJudgeOptions, order_of
from data_builders.pairs import DrawOptions, Side, draw, pair_of

VERSION = "1"


@dataclass(kw_only=True)
class Options(PairJudgeOptions, DrawOptions, BuildOptions):
    """Options of `alignment build on_policy_judge`; the input's rows need `prompt`."""


def builder(options: Options) -> Callable[[Row, LLM, LLM], Awaitable[Group]]:
    """The function that makes a pair of a row, ready for `build_dataset`.

    Raises:
        UserError: The judge's prompt file cannot be used.
    """
    compare = options.comparison()

    async def build(row: Row, llm: LLM, judge: LLM) -> Group:
        prompt = prompt_of(row)
        replies = await asyncio.gather(*(draw(llm, prompt, options, sample) for sample in (0, 1)))
        texts = [reply.text for reply in replies]
        verdicts = await compare(judge, prompt, *texts)
        order = order_of(verdicts.score, responses=texts, judge=verdicts.as_row())
        chosen, rejected = (Side(texts[i], llm.model, on_policy=True) for i in order)
        meta = {
            "builder": "on_policy_judge",
            "version": VERSION,
            "sampling": options.sampling.settings(),
            "samples": order._asdict(),
            "judge": {"model": judge.model, **verdicts.as_row()},
        }
        return pair_of(prompt, chosen, rejected, meta)

    return build


def main(argv: list[str]) -> None:
    """`alignment build on_policy_judge`."""
    options = parse(Options, argv, "alignment build on_policy_judge", __doc__)
    build_dataset(
        *(options, builder(options)),
        models={"generator": options.generator, "judge": options.required_judge},
        needs=(PROMPT_COLUMNS,),
        later="two verdicts on each pair of answers",
    )


if __name__ == "__main__":
    run(main)
