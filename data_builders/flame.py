"""FLAME: two answers ordered by a judge, and by a judge of facts where the prompt asks for facts.

Every prompt gives a pair by how well its instruction is followed. A prompt whose answer rests on
facts of the world gives a second pair, of the same answers, by how true they are: a model that is
aligned by the first kind alone learns to write long answers that sound well.

Paper: FLAME: Factuality-Aware Alignment for Large Language Models, arXiv 2405.01525. There a reward
counts atomic facts checked by retrieval; a judge that compares two answers is our form.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.cli import parse, run
from alignment.core.groups import Group
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_text
from alignment.llm.protocol import Prompt, Sampling
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, prompt_of
from data_builders.base import PROMPTS, BuildOptions, build_dataset
from data_builders.judging import Compare, PairJudgeOptions, order_of
from data_builders.pairs import DrawOptions, Side, draw, pair_of

VERSION = "1"
_VERDICT = re.compile(r"^\W*fact-based:\W*(yes|no)\W*$", re.IGNORECASE | re.MULTILINE)


@dataclass(kw_only=True)
class Options(PairJudgeOptions, DrawOptions, BuildOptions):
    """Options of `alignment build flame`; the input's rows need `prompt`."""

    fact_judge: str = field(
        default="factual",
        metadata={"help": "YAML of the judge of facts, or the name of one in eval/judges"},
    )
    fact_prompt: Path | None = field(
        default=None, metadata={"help": "prompt file that asks whether a prompt is fact-based"}
    )


def builder(options: Options) -> Callable[[Row, LLM, LLM], Awaitable[Sequence[Group | Reject]]]:
    """The function that makes one or two pairs of a row, ready for `build_dataset`.

    Raises:
        UserError: A prompt file or a judge's YAML cannot be used.
    """
    template = Template(options.fact_prompt or PROMPTS / "flame_fact_based.txt", {"prompt"})
    compare = options.comparison()
    compare_facts = replace(options, judge=options.fact_judge, judge_prompt=None).comparison()

    async def build(row: Row, llm: LLM, judge: LLM) -> Sequence[Group | Reject]:
        prompt = prompt_of(row)
        about_facts, first, second = await asyncio.gather(
            is_fact_based(judge, template, prompt),
            draw(llm, prompt, options, 0),
            draw(llm, prompt, options, 1),
        )
        texts = [first.text, second.text]
        judges = {"instruction": compare, **({"facts": compare_facts} if about_facts else {})}

        async def pair(criterion: str, by: Compare) -> Group | Reject:
            verdicts = await by(judge, prompt, *texts)
            meta = {
                **{"builder": "flame", "version": VERSION, "criterion": criterion},
                **{"fact_based": about_facts, "sampling": options.sampling.settings()},
                "judge": {"model": judge.model, **verdicts.as_row()},
            }
            try:
                order = order_of(verdicts.score, responses=texts, criterion=criterion)
                chosen, rejected = (Side(texts[i], llm.model, on_policy=True) for i in order)
                return pair_of(prompt, chosen, rejected, meta)
            except Reject as reject:
                return reject

        return await asyncio.gather(*(pair(*named) for named in judges.items()))

    return build


async def is_fact_based(judge: LLM, template: Template, prompt: Prompt) -> bool:
    """Whether a judge says that the answer to a prompt rests on facts of the world.

    Raises:
        Reject: `unclassified` where the reply does not end with a verdict.
    """
    messages = template.user_message(prompt=as_text(prompt))
    reply = await judge.chat(messages, Sampling(temperature=0.0, max_tokens=512))
    found = _VERDICT.findall(reply.text)
    if not found:
        raise Reject(
            "unclassified", "the reply has no line `Fact-based: yes` or no", reply=reply.text
        )
    return bool(found[-1].lower() == "yes")


def main(argv: list[str]) -> None:
    """`alignment build flame`."""
    options = parse(Options, argv, "alignment build flame", __doc__)
    build_dataset(
        *(options, builder(options)),
        models={"generator": options.generator, "judge": options.required_judge},
        needs=(PROMPT_COLUMNS,),
        later="two verdicts on each pair of answers, and two more where facts are asked for",
    )


if __name__ == "__main__":
    run(main)
