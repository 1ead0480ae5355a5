"""Scorers of candidates: a judge, sacrebleu and chrF against a reference, and whatever is asked."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

from alignment.cli import UserError, unknown
from alignment.core.groups import Content
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_messages
from alignment.llm.rows import Reject
from data_builders.ratings import Rater

ASKED = ("scorer:", "comet:", "reward:")
"""Beginnings of the names of scorers that are asked as models are."""

_OVERALL = (
    "how good the answer is as a whole: whether it does what the task asks, whether all of it is "
    "true (a translation: whether it carries the whole meaning and adds none), and whether it "
    "reads as if a careful native writer had written it"
)


class Item(NamedTuple):
    """What is to be scored.

    Attributes:
        prompt: What was asked.
        source: The text that the prompt is about, such as the one to translate.
        candidates: The answers.
        reference: A human answer that is not among them, None where there is none.
    """

    prompt: Content
    source: str
    candidates: list[str]
    reference: str | None


Asked: TypeAlias = Callable[[Item, LLM], Awaitable[list[float]]]
"""`score(item, model)`: a number for each candidate, higher is better; `Reject` without them."""
Measured: TypeAlias = Callable[[Item], list[float]]
"""The same without a model."""


def is_asked(name: str) -> bool:
    """Whether a scorer is a model behind the engine."""
    return name == "judge" or name.startswith(ASKED)


def asking(name: str, rater: Rater) -> Asked:
    """A scorer that is asked, by its name: `judge`, `scorer:URL`, `comet:MODEL`, `reward:MODEL`.

    Args:
        name: For which `is_asked` holds.
        rater: How a judge is asked.
    """

    async def judge(item: Item, model: LLM) -> list[float]:
        rated = await rater.rate(model, item.prompt, item.candidates, _OVERALL)
        ratings = [block.rating for block in rated.blocks if block.rating is not None]
        if len(ratings) != len(item.candidates):
            raise Reject("unrated", "the judge did not rate every candidate")
        return [float(rating) for rating in ratings]

    if name == "judge":
        return judge
    return _reward if name.startswith("reward:") else _post


def measuring(name: str, bleu_tokenize: str) -> tuple[Measured, str]:
    """A metric of sacrebleu against the reference, by its name: `bleu` or `chrf`.

    Args:
        name: The name.
        bleu_tokenize: The tokenizer of `bleu`.

    Returns:
        The metric, and its signature.

    Raises:
        UserError: There is no such scorer, or sacrebleu or its tokenizer is not installed.
    """
    if name not in ("bleu", "chrf"):
        raise unknown("scorer", name, ["judge", "bleu", "chrf", *(f"{kind}..." for kind in ASKED)])
    try:
        metrics: Any = importlib.import_module("sacrebleu.metrics")
    except ImportError as error:
        raise UserError(
            f"`scorer: {name}` needs sacrebleu ({error}): install the extra `translation`"
        ) from None
    try:
        bleu = name == "bleu"
        metric = (
            metrics.BLEU(tokenize=bleu_tokenize, effective_order=True) if bleu else metrics.CHRF()
        )
    except (
        Exception,
        SystemExit,
    ) as error:  # sacrebleu's own, or what a tokenizer's library raises
        raise UserError(f"sacrebleu has no tokenizer `{bleu_tokenize}`: {error}") from None

    def score(item: Item) -> list[float]:
        if item.reference is None:
            raise Reject("no_reference", "the row has no reference to score candidates against")
        reference = [item.reference]
        return [float(metric.sentence_score(text, reference).score) for text in item.candidates]

    # The signature is known once the metric has seen how many references there are.
    metric.sentence_score("", [""])
    return score, str(metric.get_signature())


async def _post(item: Item, model: LLM) -> list[float]:
    asked = {"source": item.source, "candidates": item.candidates, "reference": item.reference}
    reply = await model.complete(json.dumps(asked, ensure_ascii=False))
    return [float(score) for score in json.loads(reply.text)]


async def _reward(item: Item, model: LLM) -> list[float]:
    asked = as_messages(item.prompt)
    return await asyncio.gather(
        *(
            model.reward([*asked, {"role": "assistant", "content": candidate}])
            for candidate in item.candidates
        )
    )
