"""RLCD: answers drawn under contrastive prompts, labelled by where they come from.

Paper: "RLCD: Reinforcement Learning from Contrastive Distillation for Language Model Alignment",
arXiv 2307.12950. `--label` names the variants: `provenance` (RLCD), `rescore` (the same answers,
labelled by a model), `agree` (only where both say the same), `rlaif` (two draws from the plain
prompt, labelled by a model). The paper trains a reward model and PPO; here direct objectives take
the pairs. Both sides of all but `rlaif` are off-policy, which favours APO-zero, CPO and NCA.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from alignment.cli import parse, run
from alignment.core.groups import Group
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Prompt
from alignment.llm.rows import Reject, Row
from data_builders.affixes import COLUMNS, Affix, Affixes, AffixOptions
from data_builders.base import build_dataset
from data_builders.judging import PairJudgeOptions, order_of
from data_builders.letters import letter_preference, letters_template
from data_builders.pairs import Side, pair_of
from data_builders.transcript import Conversation
from eval.judge import inert

logger = logging.getLogger(__name__)

VERSION = "1"
"""Of the affixes, the prompts and the cleaning together."""


@dataclass(kw_only=True)
class Options(PairJudgeOptions, AffixOptions):
    """Options of `alignment build rlcd`; the input's rows need `prompt`."""

    label: Literal["provenance", "rescore", "agree", "rlaif"] = field(
        default="provenance",
        metadata={"help": "what says which side is chosen; rlaif: of two draws from one prompt"},
    )
    labels_by: Literal["score", "top_logprobs", "verdict"] = field(
        default="score",
        metadata={
            "help": "how a model labels: log-probs of two letters, the same among the likeliest "
            "tokens of an answer, or a judge's verdicts in both orders"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label == "provenance" and self.judge_at is not None:
            raise ValueError("`label: provenance` asks no judge; leave out `judge_model`")


class Answer(NamedTuple):
    """One of a row's two answers.

    Attributes:
        affix: The description it was drawn under; None for the plain prompt.
        prompt: What it was drawn from.
        text: The answer.
        sample: Which draw it was.
    """

    affix: str | None
    prompt: Prompt
    text: str
    sample: int


def builder(options: Options) -> Callable[..., Awaitable[Group]]:
    """The function that makes a pair of a row, ready for `build_dataset`.

    It takes the row, the model that answers and, where it is another one, the model that labels.

    Raises:
        UserError: A file of affixes or a prompt file cannot be used.
    """
    affixes, labels = Affixes(options), _Labels(options)
    plain = options.label == "rlaif"

    async def build(row: Row, llm: LLM, judge: LLM | None = None) -> Group:
        conversation = Conversation(row)
        affix, rng = affixes.of(conversation)
        answers = await _answers(affixes, llm, conversation, None if plain else affix)
        texts = [answer.text for answer in answers]
        preference: float | None = None
        told: dict[str, Any] = {}
        if options.label != "provenance":
            swapped = rng.random() < 0.5
            preference = await labels.preference(judge or llm, conversation, affix, texts, swapped)
            told = {"judge": labels.told(judge or llm, swapped)}
        order = order_of(1.0 if preference is None else preference, responses=texts)
        if options.label == "agree" and order.chosen == 1:
            raise Reject("disagree", "the judge prefers the negative side", responses=texts)
        rewards = (None, None) if preference is None else (preference, 1.0 - preference)
        sides = [
            Side(conversation.response(answer.text), llm.model, plain, answer.prompt, reward)
            for answer, reward in zip(answers, rewards, strict=True)
        ]
        by_side = order._asdict().items()
        meta = {
            "builder": "rlcd",
            "version": VERSION,
            "label": options.label,
            "attribute": options.attribute,
            "affix": {"index": affix.place, **{side: answers[i].affix for side, i in by_side}},
            "samples": {side: answers[i].sample for side, i in by_side},
            "sampling": options.sampling.settings(),
            **told,
        }
        return pair_of(conversation.prompt, sides[order.chosen], sides[order.rejected], meta)

    return build


def main(argv: list[str]) -> None:
    """`alignment build rlcd`."""
    options = parse(Options, argv, "alignment build rlcd", __doc__)
    models = {"generator": options.generator}
    if options.judge_at is not None:
        models["judge"] = options.judge_at
    elif options.label != "provenance":
        logger.warning(
            "%s labels its own answers, as the paper's base model does; models prefer what they "
            "find likely, so name another one by `--judge-model` to compare",
            options.model,
        )
    later = None if options.label == "provenance" else "the labels of each pair of answers"
    build_dataset(options, builder(options), models=models, needs=(COLUMNS,), later=later)


async def _answers(
    affixes: Affixes, llm: LLM, conversation: Conversation, affix: Affix | None
) -> list[Answer]:
    """The two answers of a row: under the positive and the negative affix, or both under none."""

    async def draw(own: str, earlier: str, first: int) -> Answer:
        prompt = affixes.prompt(conversation, own, earlier)
        drawn = await affixes.draw(llm, prompt, first)
        return Answer(own or None, prompt, *drawn)

    if affix is None:
        sides = [draw("", "", 0), draw("", "", affixes.tries)]
    else:
        # Earlier turns read as the other kind, against which the coming one stands out.
        sides = [
            draw(affix.positive, affix.negative, 0),
            draw(affix.negative, affix.positive, 0),
        ]
    # Both to their end, also where one fails: a run that is repeated makes the same calls.
    drawn = await asyncio.gather(*sides, return_exceptions=True)
    for answer in drawn:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in drawn if isinstance(answer, Answer)]


class _Labels:
    """A model's preference between two answers, in the way that the options name."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._template = letters_template()
        self._compare = options.comparison()

    async def preference(
        self, llm: LLM, conversation: Conversation, affix: Affix, texts: list[str], swapped: bool
    ) -> float | None:
        """For the first of the texts, which is shown second where `swapped` says so."""
        first, second = reversed(texts) if swapped else texts
        prompt, how = as_text(conversation.messages), self._options.labels_by
        if how == "verdict":
            verdicts = await self._compare(llm, prompt, first, second)
            shown = verdicts.score
        else:
            fields = {"prompt": prompt, "first": inert(first), "second": inert(second)}
            text = self._template.render(question=affix.question, **fields)
            shown = await letter_preference(llm, text, how, self._options.format)
        return shown if shown is None or not swapped else 1.0 - shown

    def told(self, llm: LLM, swapped: bool) -> dict[str, Any]:
        """What `meta` keeps of the labelling."""
        return {"model": llm.model, "by": self._options.labels_by, "swapped": swapped}


if __name__ == "__main__":
    run(main)
