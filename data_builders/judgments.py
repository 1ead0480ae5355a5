"""Judgments for CUT: answers with words on what is wrong with them, null where nothing is.

Paper: "Reasons to Reject? Aligning Language Models with Judgments", arXiv 2312.14591.
Without `--judge-model` the rows hold judgments: CUT's own layout, questions with answers and
feedback, or critiques of summaries. With it, a judge is asked about the answer of each row, which
`--model` writes where the row has none.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import parse, run
from alignment.core.groups import Content, RowError, group_from_row
from alignment.core.rows import read_rows
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_text
from alignment.llm.protocol import Sampling
from alignment.llm.rows import (
    PROMPT_COLUMNS,
    RESPONSE_COLUMNS,
    Named,
    Reject,
    Row,
    prompt_of,
    response_of,
)
from data_builders.base import PROMPTS, Build, DataOptions, JudgeOptions, ModelAt, build_dataset
from data_builders.pairs import DrawOptions, draw, like
from data_builders.survey import Survey, unsurveyed

VERSION = "1"
"""Of the prompt and the parsers together; rows made by different versions are told apart by it."""

_FEEDBACK_COLUMNS = {"question": "prompt", "answer": "response", "feedback": "judgment"}


@dataclass(kw_only=True)
class Options(DataOptions, DrawOptions, JudgeOptions):
    """Options of `alignment build judgments`."""

    model: str | None = field(
        default=None, metadata={"help": "model that answers rows without an answer, to be judged"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    judge_prompt: Path | None = field(
        default=None, metadata={"help": "prompt file with the fields prompt, response, word, fence"}
    )
    judge_max_tokens: int = field(default=1024, metadata={"help": "longest judgment, tokens"})
    word: str = field(
        default="FLAWLESS", metadata={"help": "how a judge begins who finds no fault"}
    )
    positives_per_negative: float | None = field(
        default=0.25,
        metadata={"help": "most rows without fault for each row with one, drawn; null: all"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.judge_model is None:
            raise ValueError("`model` answers rows to be judged: name the judge by `--judge-model`")
        ratio = self.positives_per_negative
        if ratio is not None and not 0 <= ratio < math.inf:
            raise ValueError(
                f"`positives_per_negative` is {ratio}; it is a number from 0 up, or null for all"
            )


class Record(NamedTuple):
    """An answer with its judgment.

    Attributes:
        prompt: What was asked.
        response: The answer's text.
        judgment: What is wrong with it; None where nothing is.
        model: Who answered, where that is known.
    """

    prompt: Content
    response: str
    judgment: str | None
    model: str | None


def read_verdict(reply: str, word: str) -> str | None:
    """The judgment in a judge's reply: None where it begins with the agreed word, else all of it.

    Raises:
        Reject: `empty` where the judge said nothing.
    """
    if not reply.strip():
        raise Reject("empty", "the judge said nothing")
    praised = re.match(rf"\W*{re.escape(word)}(?!\w)", reply, re.IGNORECASE)
    return None if praised else reply.strip()


def records(rows: Iterator[Named]) -> Iterator[Named]:
    """The rows of a file, those of critiques of summaries taken apart: a row for each question.

    As the paper does, the answer that is ranked highest stands for a question. Without critiques
    there is nothing wrong with it; else the critiques are joined.
    """
    for name, row in rows:
        data = row.get("data", row)
        questions = data.get("questions") if isinstance(data, Mapping) else None
        if not isinstance(questions, list) or not all(isinstance(q, Mapping) for q in questions):
            yield name, row
            continue
        for number, question in enumerate(questions):
            yield f"{name}, question {number}", {"passage": data.get("passage"), **question}


def read_record(row: Row) -> Record:
    """The judged answer in a row of `records`.

    Raises:
        Reject: The row lacks a part, or its judge's refinement is empty (`no_refinement`).
    """
    if "answers" in row and "rankings" in row:
        row = _top_ranked(row)
    elif "feedback" in row and "judgment" not in row:
        row = {_FEEDBACK_COLUMNS.get(name, name): value for name, value in row.items()}
    if "judgment" not in row:
        raise Reject("no_judgment", f"no column `judgment`; there is {', '.join(row) or 'nothing'}")
    words = row["judgment"]
    if not isinstance(words, str | None):
        raise Reject("bad_type", f"`judgment` must be text, got {type(words).__name__}")
    judgment = words if words and words.strip() else None
    return Record(prompt_of(row), response_of(row), judgment, row.get("model"))


class Quota:
    """Which rows without fault to keep: `floor(ratio * negatives)`, at random under the seed.

    Args:
        keys: What names each row without fault, alike for like rows; None for one with a fault.
        ratio: Most of the ones for each of the others.
        seed: Decides which, whatever the order of the rows.

    Attributes:
        left: Key -> how many rows with it may still be kept, 0 for those that were not drawn.
    """

    def __init__(self, keys: Sequence[str | None], ratio: float, seed: int) -> None:
        positives = [key for key in keys if key is not None]
        most = math.floor(Fraction(str(ratio)) * (len(keys) - len(positives)))
        positives.sort(key=lambda key: _digest(str(seed), key))
        self.left = Counter(dict.fromkeys(positives, 0))
        self.left.update(positives[:most])

    def take(self, key: str) -> None:
        """Uses up a place.

        Raises:
            Reject: `downsampled` where none is left for this row, `unsurveyed` where it was not
                among the keys.
        """
        if key not in self.left:
            raise unsurveyed()
        if not self.left[key]:
            raise Reject(
                "downsampled",
                "there are enough rows without fault for those with one; "
                "`--positives-per-negative` keeps more, null keeps all",
            )
        self.left[key] -= 1


def builder(options: Options) -> Build:
    """The function that makes a judged answer of a row, ready for `build_dataset`.

    Raises:
        UserError: The prompt file cannot be used.
    """
    judging, ratio = _Judging(options), options.positives_per_negative
    survey: Survey[str | None, Quota] | None = None
    if ratio is not None:
        quota = partial(Quota, ratio=ratio, seed=options.seed)
        survey = Survey(lambda: _rows(options), quota, options)

    async def build(row: Row, *models: LLM) -> Row:
        made = await judging.judged(row, *models)
        if survey is not None and (key := _key(made)) is not None:
            (await survey.conclusion(lambda row: judging.key(row, *models))).take(key)
        return made

    return build


class _Judging:
    """What makes a judged answer of one row."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.template = Template(
            options.judge_prompt or PROMPTS / "judgments.txt", {"prompt", "response", "word"}
        )
        self.sampling = Sampling(temperature=0.0, max_tokens=options.judge_max_tokens)

    async def key(self, row: Row, *models: LLM) -> str | None:
        """What names a row without fault; None for one with a fault."""
        return _key(await self.judged(row, *models))

    async def judged(self, row: Row, *models: LLM) -> Row:
        """A row for training.

        Raises:
            Reject: The row cannot be used, or the judge's words are a placeholder for an error.
            CallError: A model gave no answer.
        """
        seed = self.options.seed
        meta: dict[str, Any] = {"builder": "judgments", "version": VERSION, "seed": seed}
        if not models:
            record = read_record(row)
            meta |= {"models": {"response": record.model}, "on_policy": {"response": False}}
        else:
            record, asked = await self._ask(row, *models)
            meta |= asked
        if row.get("finish_reason") == "length":
            raise Reject("truncated", "the answer was cut off at its length limit")
        return _checked(record, meta)

    async def _ask(self, row: Row, *models: LLM) -> tuple[Record, dict[str, Any]]:
        """A row's answer, its model's or its own, with the judge's words on it."""
        judge, *policies = models
        prompt, options = prompt_of(row), self.options
        drawing = bool(policies) and not any(row.get(name) for name in RESPONSE_COLUMNS)
        model: str | None = policies[0].model if drawing else row.get("model")
        response = (await draw(policies[0], prompt, options)).text if drawing else response_of(row)
        messages = self.template.user_message(
            prompt=as_text(prompt), response=response, word=options.word
        )
        reply = await judge.chat(messages, self.sampling)
        record = Record(prompt, response, read_verdict(reply.text, options.word), model)
        return record, {
            "models": {"response": model, "judge": judge.model},
            "on_policy": {"response": drawing},
            "sampling": {
                "judge": self.sampling.settings(),
                **({"response": options.sampling.settings()} if drawing else {}),
            },
            "prompt_file": self.template.digest,
            "generation_prompt": messages[0]["content"],
        }


def main(argv: list[str]) -> None:
    """`alignment build judgments`."""
    options = parse(Options, argv, "alignment build judgments", __doc__)
    models, later = {}, None
    needs: tuple[str, ...] = ("judgment", "feedback", "rankings")
    if options.judge is not None:
        models, needs = {"judge": options.judge}, PROMPT_COLUMNS
    if options.model is not None:
        models["generator"] = ModelAt(options.model, options.base_url)
        later = "judgments of answers"
    build_dataset(
        options,
        builder(options),
        models=models,
        rows=_rows(options),
        needs=[needs],
        later=later,
    )


def _rows(options: Options) -> Iterator[Named]:
    return records(read_rows(options.input))


def _top_ranked(row: Row) -> Row:
    """The answer to a question that is ranked highest, with its critiques as the judgment."""
    try:
        rankings = list(row["rankings"])
        best = row["answers"][rankings.index(max(rankings))]
        feedback = best["feedback"]
        passage = (row.get("passage") or {}).get("text") or ""
        prompt = "\n\n".join(filter(None, [passage, row["question"]]))
        critiques = feedback.get("critiques") or []
        words = " ".join(critique["text"].strip() for critique in critiques) or None
        refined = not critiques or (critiques[-1].get("refinement") or "").strip()
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        told = f"a question with rankings, answers and critiques was expected: {error!r}"
        raise Reject("bad_type", told) from None
    if feedback.get("skip"):
        raise Reject("skipped", "whoever was to judge the answer skipped it")
    if not refined:
        raise Reject("no_refinement", "the answer was criticised, but not refined")
    return {"prompt": prompt, "response": best.get("answer"), "judgment": words}


def _checked(record: Record, meta: Mapping[str, Any]) -> Row:
    """The row in the format that training reads, which has refused what it would refuse."""
    prompt, response = record.prompt, like(record.prompt, record.response)
    names = ("instruction", "output") if isinstance(prompt, str) else ("prompt", "completion")
    row = {
        **dict(zip(names, (prompt, response), strict=True)),
        "judgment": record.judgment,
        "meta": {**meta, "category": "align_n" if record.judgment else "align_p"},
    }
    try:
        group_from_row(row)
    except RowError as error:
        raise Reject(error.reason, str(error)) from None
    return row


def _key(row: Row) -> str | None:
    if row["judgment"] is not None:
        return None
    return _digest(as_text(prompt_of(row)), str(row.get("output") or row.get("completion")))


def _digest(*texts: str) -> str:
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


if __name__ == "__main__":
    run(main)
