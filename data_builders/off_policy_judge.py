"""Off-policy judge: two answers of other models, ordered by their rewards or by a judge.

Paper: a baseline of "Anchored Preference Optimization and Contrastive Revisions: Addressing
Underspecification in Alignment", arXiv 2408.06266, which took UltraFeedback's answers and
judgments. Most of its winners came from models weaker than the one trained: `alignment eval
zero_or_down` tells which way of APO suits such pairs.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.cli import parse, run
from alignment.core.groups import Group, Response, RowError, binarise, group_from_row, text_of
from alignment.llm.engine import LLM
from alignment.llm.rows import Reject, Row
from data_builders.base import DataOptions, build_dataset
from data_builders.judging import PairJudgeOptions, order_of
from data_builders.pairs import Side, pair_of

VERSION = "1"

COLUMNS = ("responses", "completions")
"""Where the answers of a row may stand."""


@dataclass(kw_only=True)
class Options(PairJudgeOptions, DataOptions):
    """Options of `alignment build off_policy_judge`.

    The input's rows are scored groups, such as UltraFeedback's: `prompt` and `responses`, with
    `rewards` unless a judge is named.
    """

    select: Literal["random", "best_worst"] = field(
        default="random",
        metadata={"help": "two answers drawn by the seed, or best against worst by reward"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the draw, and among equal rewards"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select == "best_worst" and self.judge_at is not None:
            raise ValueError("`select: best_worst` goes by rewards; leave out `judge_model`")


def builder(options: Options) -> Callable[..., Awaitable[Group]]:
    """The function that makes a pair of a row, ready for `build_dataset`.

    Raises:
        UserError: The judge's prompt file cannot be used.
    """
    compare = options.comparison()

    async def build(row: Row, judge: LLM | None = None) -> Group:
        meta: dict[str, Any] = {"builder": "off_policy_judge", "version": VERSION}
        meta |= {"seed": options.seed, "select": options.select}
        try:
            group = group_from_row(row)
            if options.select == "best_worst":
                group, ties = binarise(group, options.seed)
                meta["ties"] = list(ties)
                best, worst = map(_side, group.responses)
                return pair_of(group.prompt, best, worst, meta)
        except RowError as error:
            raise Reject(error.reason, str(error)) from None
        drawn = _two(group, options.seed)
        if judge is None:
            preference: float | None = _by_reward(*drawn)
        else:
            texts = [text_of(response.content) for response in drawn]
            verdicts = await compare(judge, group.prompt, *texts)
            preference = verdicts.score
            meta["judge"] = {"model": judge.model, **verdicts.as_row()}
        chosen, rejected = (_side(drawn[i]) for i in order_of(preference))
        return pair_of(group.prompt, chosen, rejected, meta)

    return build


def main(argv: list[str]) -> None:
    """`alignment build off_policy_judge`."""
    options = parse(Options, argv, "alignment build off_policy_judge", __doc__)
    models = {} if options.judge_at is None else {"judge": options.judge_at}
    build_dataset(options, builder(options), models=models, needs=(COLUMNS,))


def _two(group: Group, seed: int) -> list[Response]:
    """Two answers of a group; other rows play no part in the draw.

    Raises:
        Reject: `no_response` where there are not two.
    """
    if len(group.responses) < 2:
        raise Reject("no_response", "a pair needs two answers")
    return random.Random(f"{seed}\0{text_of(group.prompt)}").sample(group.responses, 2)


def _by_reward(first: Response, second: Response) -> float:
    """1, 0.5 or 0: the preference that rewards express.

    Raises:
        Reject: `no_reward` where one is missing.
    """
    if first.reward is None or second.reward is None:
        raise Reject("no_reward", "an answer has no reward; give rewards, or name a judge")
    return 0.5 * (1 + (first.reward > second.reward) - (first.reward < second.reward))


def _side(response: Response) -> Side:
    text = text_of(response.content)
    return Side(text, response.model, on_policy=False, reward=response.reward)


if __name__ == "__main__":
    run(main)
