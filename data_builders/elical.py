"""EliCal: a model's own answers with how sure it should be of them, for a confidence head.

The greedy answer to each question gets a target in [0, 1]: the share of sampled answers that agree
with it (no label is needed), or whether it is correct (`--target correctness`, from the column
`answer`, a text or a list of right texts). Train `objective: elical` on the first and go on with a
few of the second.

Paper: EliCal, arXiv 2510.17509: 20 samples at temperature 1. That two answers agree if they are the
same words, signs and operators, case, other punctuation and articles aside, and that a refused or
cut sample agrees with none, is our form.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from alignment.cli import check_counts, parse, run
from alignment.llm.engine import LLM
from alignment.llm.protocol import CallError, Prompt
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, prompt_of
from data_builders.base import BuildOptions, build_dataset
from data_builders.pairs import DrawOptions, draw, like

VERSION = "2"
"""Of the form in which answers are compared."""

_DASHES = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")
_ARTICLE = re.compile(r"""\b(?:a|an|the)\b(?=[*"]*\ +[^\s\w]*\w)""")
"""One before a word: the A of a choice, a list or a formula is none."""
_WORD = re.compile(
    r"""
    \w+
    | [+<=>/^%\u00b1\u00d7\u00f7\u2200-\u22ff]  # operators
    | \.(?=\d)  # a decimal point
    | (?<!\w)-(?=[^\s-]) | (?<=\w)-(?![\w-])  # a sign before a number, or after as in O-
    | (?<=\d)-(?=\d) | (?<=\d\ )-(?=\ \d)  # a minus; between words it joins or parts them
    | (?<=\w)\*\*?(?=\w) | (?<=\w\ )\*(?=\ \w)  # a product or a power; other stars are markup
    """,
    re.VERBOSE,
)


@dataclass(kw_only=True)
class Options(DrawOptions, BuildOptions):
    """Options of `alignment build elical`; the input's rows need `prompt`."""

    target: Literal["agreement", "correctness"] = field(
        default="agreement", metadata={"help": "what an answer is labelled with"}
    )
    samples: int = field(
        default=20, metadata={"help": "answers that may agree with the greedy one"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "samples")


def builder(options: Options) -> Callable[[Row, LLM], Awaitable[Row]]:
    """The function that labels the answer to a row, ready for `build_dataset`."""
    greedy = replace(options, temperature=0.0)

    async def build(row: Row, llm: LLM) -> Row:
        prompt = prompt_of(row)
        told: dict[str, Any]
        if options.target == "correctness":
            answer = (await draw(llm, prompt, greedy)).text
            target, told = _correctness(answer, row), {"right": list(_right(row))}
        else:
            first, samples = await asyncio.gather(
                draw(llm, prompt, greedy), _samples(llm, prompt, options)
            )
            answer = first.text
            target, told = agreement(answer, samples), {"samples": samples}
        if not words_of(answer):
            raise Reject("empty", "the greedy answer has no words", reply=answer)
        meta: dict[str, Any] = {
            **{"builder": "elical", "version": VERSION, "target": options.target},
            **{"model": llm.model, "sampling": options.sampling.settings(), **told},
        }
        return {
            "prompt": prompt,
            "completion": like(prompt, answer),
            "reward": target,
            "meta": meta,
        }

    return build


def words_of(text: str) -> list[str]:
    """The words, signs and operators by which two short answers are compared."""
    return _WORD.findall(_ARTICLE.sub(" ", text.lower().translate(_DASHES)))


def agreement(answer: str, others: Sequence[str | None]) -> float:
    """The share of other answers that have the words of this one; one that is None has not."""
    words = words_of(answer)
    return fmean(other is not None and words_of(other) == words for other in others)


async def _samples(llm: LLM, prompt: Prompt, options: Options) -> list[str | None]:
    """Answers that may agree with the greedy one; None for one that was refused or cut off.

    To drop their rows would drop the questions that the model is least sure of.
    """

    async def one(sample: int) -> str | None:
        try:
            return (await draw(llm, prompt, options, sample)).text
        except CallError as error:
            if error.outcome not in ("refused", "truncated"):
                raise
            return None

    return await asyncio.gather(*map(one, range(options.samples)))


def _correctness(answer: str, row: Row) -> float:
    return float(any(words_of(right) == words_of(answer) for right in _right(row)))


def _right(row: Row) -> list[str]:
    given = row.get("answer")
    right = [given] if isinstance(given, str) else given
    if not isinstance(right, list) or not right or not all(isinstance(r, str) for r in right):
        raise Reject("no_answer", "`answer` must be a text or a list of texts")
    return right


def main(argv: list[str]) -> None:
    """`alignment build elical`."""
    options = parse(Options, argv, "alignment build elical", __doc__)
    needs = [PROMPT_COLUMNS, *([("answer",)] if options.target == "correctness" else [])]
    build_dataset(options, builder(options), needs=needs)


if __name__ == "__main__":
    run(main)
