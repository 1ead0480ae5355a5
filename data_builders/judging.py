"""Which of two answers is better, by a judge's verdicts in both orders."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Prompt
from alignment.llm.rows import Reject
from data_builders.base import ModelAt
from eval.judge import Comparison, PairJudge, compare
from eval.judge_files import PREFERENCES, JudgeOptions, judge_model, judge_over, read_judge

Compare: TypeAlias = Callable[[LLM, Prompt, str, str], Awaitable[Comparison]]
"""`compare(judge, prompt, first, second)`: the preference for the first answer."""


@dataclass(kw_only=True)
class PairJudgeOptions(JudgeOptions):
    """Options of a builder whose judge prefers one of two answers."""

    judge_price: tuple[float, ...] | None = field(
        default=None, metadata={"help": "as `--price`, for the judge's tokens"}
    )
    judge_api_key_env: str | None = field(
        default=None, metadata={"help": "as `--api-key-env`, for the judge's server"}
    )

    @property
    def judge_at(self) -> ModelAt | None:
        """The judge's model, None where neither the options nor the judge's YAML name one.

        Raises:
            UserError: The YAML cannot be used.
        """
        name, url = judge_model(self, read_judge(self.judge))
        if name is None:
            return None
        return ModelAt(name, url, self.judge_price, self.judge_api_key_env)

    @property
    def required_judge(self) -> ModelAt:
        """The same, for a builder that makes nothing without a judge.

        Raises:
            UserError: None is named.
        """
        judge = self.judge_at
        if judge is None:
            raise UserError("no judge: give `--judge-model`, or `model` in the judge's YAML")
        return judge

    def comparison(self) -> Compare:
        """What asks a judge in both orders.

        Raises:
            UserError: The judge's YAML or prompt file cannot be used.
        """
        made, judges = read_judge(self.judge, PREFERENCES), dict[LLM, PairJudge]()

        async def ask(llm: LLM, prompt: Prompt, first: str, second: str) -> Comparison:
            if llm not in judges:
                judges[llm] = judge_over(llm, made, self.judge_prompt)
            return await compare(judges[llm], as_text(prompt), first, second)

        return ask


class Order(NamedTuple):
    """Two answers in order.

    Attributes:
        chosen: Index of the better one.
        rejected: Index of the worse one.
    """

    chosen: int
    rejected: int


def order_of(preference: float | None, **details: Any) -> Order:
    """The better of two answers.

    Args:
        preference: For the first over the second, in [0, 1]; None where it could not be read.
        **details: What to keep beside a row without an order.

    Raises:
        Reject: `unjudged` where there is no preference, `tie` where it is one half.
    """
    if preference is None:
        raise Reject("unjudged", "a verdict cannot be read", **details)
    if preference == 0.5:
        raise Reject("tie", "neither answer is preferred", **details)
    return Order(0, 1) if preference > 0.5 else Order(1, 0)
