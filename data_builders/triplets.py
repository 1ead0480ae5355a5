"""Triplets for CPO: of several candidates the best scored is chosen, the worst is rejected.

Papers: "Contrastive Preference Optimization", arXiv 2401.08417, and its follow-up, arXiv
2409.20059, which finds candidates of the model alone as good and steadier: the default. What lies
between best and worst is dropped. A human reference is a candidate like the others, and may be the
rejected one; as in the papers no scorer reads it then. A metric that needs it scores the others
against it instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from alignment.cli import parse, run
from alignment.core.groups import Content, Group, Response, RowError, binarise, text_of
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_text
from alignment.llm.protocol import CallError, Prompt
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, column_of, prompt_of
from data_builders.answers import AnswerFile
from data_builders.base import Build, DataOptions, JudgeOptions, ModelAt, build_dataset
from data_builders.pairs import DrawOptions, Side, draw, like, pair_of
from data_builders.ratings import Rater
from data_builders.scorers import Item, asking, is_asked, measuring

VERSION = "2"
"""Of the way in which candidates are picked."""

REFERENCE = "reference"


@dataclass(kw_only=True)
class Options(DataOptions, DrawOptions, JudgeOptions):
    """Options of `alignment build triplets`."""

    candidates: Literal["self", "multi"] = field(
        default="self",
        metadata={
            "help": "self: samples of the model; multi: of systems, and the reference if neither "
            "bleu nor chrf needs it"
        },
    )
    model: tuple[str, ...] = field(
        default=(), metadata={"help": "models that write candidates: NAME or NAME@URL"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of those without one; unset, they run here"}
    )
    samples: int = field(default=8, metadata={"help": "candidates of each prompt for `self`"})
    columns: tuple[str, ...] = field(
        default=(), metadata={"help": "columns that hold candidates of other systems, for `multi`"}
    )
    answers: tuple[Path, ...] = field(
        default=(), metadata={"help": "files of other systems' answers, for `multi`"}
    )
    reference: str = field(
        default=REFERENCE, metadata={"help": "column with a human answer, where there is one"}
    )
    source: str = field(
        default="source", metadata={"help": "column with the text to translate; else the prompt"}
    )
    scorer: tuple[str, ...] = field(
        default=("judge",),
        metadata={"help": "judge, bleu, chrf, scorer:URL, comet:MODEL, reward:MODEL; the mean"},
    )
    scorer_api_key_env: str | None = field(
        default=None, metadata={"help": "variable with the key of `scorer:URL`; none is sent else"}
    )
    judge_prompt: Path | None = field(
        default=None,
        metadata={"help": "prompt file with the fields prompt, aspect, answers, fence"},
    )
    judge_max_tokens: int = field(default=2048, metadata={"help": "longest reply of the judge"})
    bleu_tokenize: str = field(
        default="13a", metadata={"help": "sacrebleu's tokenizer for `bleu`, such as zh or ja-mecab"}
    )
    min_gap: float = field(default=0.0, metadata={"help": "least gap between best and worst"})
    drop_ties: bool = field(
        default=False,
        metadata={"help": "drop prompts with a tie for best or worst; else the seed breaks it"},
    )
    max_len: int | None = field(
        default=None, metadata={"help": "longest candidate, characters; longer ones are left out"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates == "self":
            if len(self.model) != 1:
                raise ValueError(f"`candidates: self` takes one model, got {len(self.model)}")
            if self.samples < 2:
                raise ValueError(f"`samples` is {self.samples}; a choice needs at least 2")
            if self.columns or self.answers:
                raise ValueError("`columns` and `answers` are for `candidates: multi`")
        elif not (self.model or self.columns or self.answers):
            raise ValueError("`candidates: multi` needs systems: `columns`, `answers` or `model`")
        if not self.scorer:
            raise ValueError("`scorer` names none, and candidates cannot be told apart without")
        if ("judge" in self.scorer) != (self.judge_model is not None):
            raise ValueError("`scorer: judge` and `judge_model` go together")

    @property
    def reference_competes(self) -> bool:
        """Whether the human answer is a candidate; candidates are scored against it otherwise."""
        return self.candidates == "multi" and all(map(is_asked, self.scorer))


class Counts(NamedTuple):
    """What is counted beside rows.

    Attributes:
        candidates_left_out: Reason -> candidates that were left out.
        ties_broken_by_the_seed: Side -> ties that the seed has broken.
    """

    candidates_left_out: Counter[str]
    ties_broken_by_the_seed: Counter[str]


class _Scoring:
    """All scorers of a job.

    Raises:
        UserError: One of them cannot be used.
    """

    def __init__(self, options: Options) -> None:
        rater = Rater.of(options.judge_prompt, options.judge_max_tokens, options.seed)
        names = options.scorer
        self.asked = {name: asking(name, rater) for name in names if is_asked(name)}
        metrics = {
            name: measuring(name, options.bleu_tokenize) for name in names if not is_asked(name)
        }
        self.measured = {name: metric for name, (metric, _) in metrics.items()}
        self.told: dict[str, Any] = {name: signature for name, (_, signature) in metrics.items()}
        if "judge" in names:
            self.told["judge"] = rater.settings()

    async def scores(self, item: Item, models: Sequence[LLM]) -> list[dict[str, float]]:
        """For each candidate: scorer -> value."""
        answers = await asyncio.gather(
            *(score(item, llm) for score, llm in zip(self.asked.values(), models, strict=True))
        )
        by_name = dict(zip(self.asked, answers, strict=True))
        by_name |= {name: measure(item) for name, measure in self.measured.items()}
        return [
            {name: values[index] for name, values in by_name.items()}
            for index in range(len(item.candidates))
        ]


def builder(options: Options, counts: Counts) -> Build:
    """The function that makes a pair of a prompt's candidates, ready for `build_dataset`.

    Args:
        options: How to find, score and pick candidates.
        counts: Where to count.

    Raises:
        UserError: A scorer, a file of answers or the prompt file cannot be used.
    """
    scoring = _Scoring(options)
    files = [AnswerFile(path) for path in options.answers]

    async def build(row: Row, *models: LLM) -> Group:
        scorers, writers = models[: len(scoring.asked)], models[len(scoring.asked) :]
        prompt = prompt_of(row)
        against = None if options.reference_competes else _text(row, options.reference)
        given = _given(row, prompt, files, options) if options.candidates == "multi" else []
        drawn = await _drawn(prompt, writers, options, counts.candidates_left_out)
        candidates = _usable([*given, *drawn], options.max_len, counts.candidates_left_out)
        texts = [candidate.text for candidate in candidates]
        source = _text(row, options.source) or as_text(prompt)
        scores = await scoring.scores(Item(prompt, source, texts, against), scorers)
        pair = _picked(prompt, candidates, scores, options, counts.ties_broken_by_the_seed)
        sampling = {"sampling": options.sampling.settings()} if drawn else {}
        return replace(pair, meta={**pair.meta, "scorers": scoring.told, **sampling})

    return build


def main(argv: list[str]) -> None:
    """`alignment build triplets`."""
    options = parse(Options, argv, "alignment build triplets", __doc__)
    models: dict[str, ModelAt] = {}
    for name in filter(is_asked, options.scorer):
        # A scorer neither costs what the models cost nor may see their key.
        unpriced = ModelAt(name, None, (0.0, 0.0), options.scorer_api_key_env or "")
        models[name] = options.judge if name == "judge" and options.judge else unpriced
    for number, name in enumerate(options.model, 1):
        models[f"generator {number}"] = ModelAt.of(name, options.base_url)
    counts = Counts(Counter(), Counter())
    build_dataset(
        options,
        builder(options, counts),
        models=models,
        needs=[PROMPT_COLUMNS, *([column] for column in options.columns)],
        later="scores of candidates" if options.model else None,
        counts=counts._asdict,
    )


def _given(row: Row, prompt: Prompt, files: Sequence[AnswerFile], options: Options) -> list[Side]:
    """Candidates that were made elsewhere: of columns, of files, and the reference if it competes.

    Raises:
        Reject: One of them is missing.
    """
    found = []
    for name in options.columns:
        column_of(row, name)  # there, and not empty
        found.append(Side(str(_text(row, name)), name, on_policy=False))
    for file in files:
        answer = file.answer(prompt)
        found.append(answer._replace(model=answer.model or file.path.stem))
    reference = _text(row, options.reference) if options.reference_competes else None
    if reference is not None:
        found.append(Side(reference, REFERENCE, on_policy=False))
    return found


def _text(row: Row, column: str) -> str | None:
    """The text in a column, None where there is none."""
    text = row.get(column) or None
    if not isinstance(text, str | None):
        raise Reject("bad_type", f"`{column}` must be text, got {type(text).__name__}")
    return text


async def _drawn(
    prompt: Prompt, writers: Sequence[LLM], options: Options, left_out: Counter[str]
) -> list[Side]:
    """Candidates that are drawn now; one that is refused or cut off is left out."""

    async def one(llm: LLM, sample: int) -> Side | None:
        try:
            reply = await draw(llm, prompt, options, sample)
        except CallError as error:
            if error.outcome not in ("refused", "truncated"):
                raise
            left_out[error.outcome] += 1
            return None
        return Side(reply.text, llm.model, on_policy=True)

    samples = range(options.samples if options.candidates == "self" else 1)
    made = await asyncio.gather(*(one(llm, sample) for llm in writers for sample in samples))
    return [candidate for candidate in made if candidate is not None]


def _usable(candidates: Sequence[Side], max_len: int | None, left_out: Counter[str]) -> list[Side]:
    """The candidates that are not empty, too long or like an earlier one.

    Raises:
        Reject: `too_few_candidates` where fewer than two are left.
    """
    found: dict[tuple[str, ...], Side] = {}
    for candidate in candidates:
        words = tuple(candidate.text.split())
        if not words:
            left_out["empty"] += 1
        elif max_len is not None and len(candidate.text) > max_len:
            left_out["too_long"] += 1
        elif words in found:
            left_out["identical"] += 1
        else:
            found[words] = candidate
    if len(found) < 2:
        told = f"{len(found)} of {len(candidates)} candidates are left; a pair takes two"
        raise Reject("too_few_candidates", told)
    return list(found.values())


def _picked(
    prompt: Content,
    candidates: Sequence[Side],
    scores: Sequence[Mapping[str, float]],
    options: Options,
    ties: Counter[str],
) -> Group:
    """The pair of the best against the worst candidate by mean score.

    Raises:
        Reject: `no_gap`, `small_gap`, or `tie` where ties are dropped.
    """
    means = [fmean(values.values()) for values in scores]
    group = Group(
        prompt,
        tuple(
            Response(like(prompt, side.text), mean)
            for side, mean in zip(candidates, means, strict=True)
        ),
    )
    try:
        pair, broken = binarise(group, options.seed)
    except RowError as error:
        raise Reject(error.reason, str(error)) from None
    if broken and options.drop_ties:
        raise Reject("tie", f"{' and '.join(broken)}: candidates have equal scores")
    gap = max(means) - min(means)
    if gap < options.min_gap:
        told = f"best and worst are {gap:g} apart, less than `min_gap` {options.min_gap:g}"
        raise Reject("small_gap", told)
    ties.update(broken)
    texts = [side.text for side in candidates]
    best, worst = (texts.index(text_of(response.content)) for response in pair.responses)
    return pair_of(
        prompt,
        candidates[best]._replace(reward=means[best]),
        candidates[worst]._replace(reward=means[worst]),
        {
            "builder": "triplets",
            "version": VERSION,
            "seed": options.seed,
            "ties": list(broken),
            "scores": {"chosen": scores[best], "rejected": scores[worst]},
            "candidates": [
                {"system": side.model, **values}
                for side, values in zip(candidates, scores, strict=True)
            ],
        },
    )


if __name__ == "__main__":
    run(main)
