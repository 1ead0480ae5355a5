"""Answers of a model, and a judge's verdicts on them against a baseline's, in AlpacaEval's way."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.connect import connect, open_ledger, run_rows
from alignment.llm.ledger import Ledger
from alignment.llm.prompts import shorten
from alignment.llm.protocol import Sampling
from alignment.llm.rows import Row
from eval.annotations import Benchmark
from eval.judge import Judge, PairJudge, Side, compare
from eval.judge_files import JudgeOptions, open_judge
from eval.official_prompt import in_chatml, is_official, with_chatml
from eval.verdicts import TokenPreference

Order = Literal["both", "published"]


def saw_swapped(instruction: str) -> bool:
    """Whether the judge of the published runs saw the model's answer before the baseline's.

    Args:
        instruction: The prompt, by which the draw is seeded.
    """
    draw = random.Random("is_switched_outputs" + instruction + "0")
    return draw.choices([False, True], k=1)[0]


def ask_model(  # noqa: PLR0913 - all named
    options: JudgeOptions,
    benchmark: Benchmark,
    output: Path,
    *,
    model: str,
    base_url: str | None,
    sampling: Sampling,
) -> None:
    """Has a model answer all prompts, into rows with `index`, `instruction`, `output`.

    Raises:
        UserError: The model cannot be asked, or answers nothing.
    """
    with open_ledger(output, options) as ledger:
        llm = connect(model, base_url, ledger, options)

        async def answers(row: Row) -> list[Row]:
            messages = [{"role": "user", "content": row["instruction"]}]
            reply = await llm.chat(messages, sampling, keep_truncated=True)
            settings = {"sampling": sampling.settings(), **llm.source}
            return [{**row, "output": reply.text, "generator": llm.model, **settings}]

        rows = (
            (f"prompt {prompt.name}", {"index": prompt.name, "instruction": str(prompt.text)})
            for prompt in benchmark.prompts
        )
        report = run_rows(
            *(options, [llm], rows, answers, output),
            total=len(benchmark),
            later="the verdicts on the answers",
        )
        report.refuse_empty(benchmark.path)


def read_answers(path: Path, benchmark: Benchmark) -> tuple[str, dict[int, str]]:
    """The name of a model and its answers by position of the prompt.

    Raises:
        UserError: A row cannot be read, or is on a prompt that is foreign or answered before.
    """
    answers: dict[int, str] = {}
    names: Counter[str] = Counter()
    for name, row in read_rows(path):
        place = benchmark.find(name, row)
        columns = [column for column in ("output", "response", "completion") if column in row]
        if place is None or place in answers:
            told = "is foreign to" if place is None else "is answered before, of"
            raise UserError(
                f"{name}: its prompt {told} {benchmark.path}; answers and baseline must be to the "
                "same prompts, one each"
            )
        if not columns or not isinstance(row[columns[0]], str):
            raise UserError(f"{name}: no text in `output`; there is {shorten(', '.join(row))}")
        answers[place] = row[columns[0]]
        names[str(row.get("generator") or row.get("model") or path.stem)] += 1
    if not answers:
        raise UserError(f"{path}: the file holds no answers")
    return names.most_common(1)[0][0], answers


def judge_answers(  # noqa: PLR0913 - all named
    options: JudgeOptions,
    benchmark: Benchmark,
    answers: Path,
    output: Path,
    *,
    order: Order,
    require_logprobs: bool,
) -> dict[str, Any]:
    """Judges answers against the baseline's, into rows in AlpacaEval's columns with all votes.

    Args:
        options: Which judge, and how to ask.
        benchmark: The prompts with the baseline's answers.
        answers: File of the model's answers.
        output: The file of verdicts to be.
        order: Both orders, or the one that the published runs drew.
        require_logprobs: Whether a judge that returns none ends the job.

    Returns:
        What is to be said of the judge.

    Raises:
        UserError: Files do not fit, or the judge cannot be asked.
    """
    model, said = read_answers(answers, benchmark)
    _refuse_lacking(benchmark)
    with open_ledger(output, options) as ledger:
        judge = _judge(options, ledger, require_logprobs)

        async def judged(row: Row) -> list[Row]:
            first: Side | None = None
            if order == "published":
                first = "answer" if saw_swapped(row["instruction"]) else "baseline"
            texts = (row["instruction"], row["output_2"], row["output_1"])
            made = (await compare(judge, *texts, first)).as_row()
            score = made.pop("score")
            return [{**row, "preference": None if score is None else 1 + score, **made}]

        rows = _matches(benchmark, model, said)
        run_rows(options, [judge.llm], rows, judged, output, total=len(said))
        identity = judge.identity()
    _refuse_silence(output)
    return {**identity, "order": order, "official_prompt": is_official(identity)}


def votes(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the votes behind some verdicts tell of the judge.

    Args:
        rows: As `judge_answers` writes them.

    Returns:
        Counts of votes that are probabilities, that are words, and that cannot be read, by fault;
        and the share of prompts on which both orders agree, None where one was asked.
    """
    rows = list(rows)
    cast = [vote for row in rows for vote in row["votes"]]
    read = [vote for vote in cast if vote["fault"] is None]
    weighted = sum(vote["weighted"] for vote in read)
    agreed = [row["consistent"] for row in rows if row["consistent"] is not None]
    return {
        "weighted_verdicts": weighted,
        "hard_verdicts": len(read) - weighted,
        "unreadable_verdicts": len(cast) - len(read),
        "faults": dict(sorted(Counter(vote["fault"] for vote in cast if vote["fault"]).items())),
        "identical": sum(not row["votes"] for row in rows),
        "position_consistency": fmean(agreed) if agreed else None,
    }


def _refuse_silence(output: Path) -> None:
    """Refuses verdicts of which none can be read; it shows what the judge said."""
    rows = [row for _, row in read_rows(output)]
    faulty = [vote for row in rows for vote in row["votes"] if vote["fault"]]
    if faulty and all(row["preference"] is None for row in rows):
        fault, text = faulty[0]["fault"], shorten(faulty[0]["text"])
        raise UserError(
            f"{output}: none of {len(faulty)} verdicts can be read; the first is {fault}: `{text}`"
        )


def _matches(
    benchmark: Benchmark, model: str, said: Mapping[int, str]
) -> Iterator[tuple[str, Row]]:
    """What is to be judged, in AlpacaEval's columns."""
    for place in sorted(said):
        prompt = benchmark.prompts[place]
        row = {
            "index": prompt.name,
            "instruction": prompt.text,
            "generator_1": benchmark.baseline_name or "baseline",
            "generator_2": model,
            "output_1": prompt.baseline,
            "output_2": said[place],
        }
        yield f"prompt {prompt.name}", row


def _judge(options: JudgeOptions, ledger: Ledger, require_logprobs: bool) -> PairJudge:
    """The judge of the options; its prompt may be in AlpacaEval's own layout."""
    prompt = options.judge_prompt
    if prompt is None or not in_chatml(prompt):
        judge = open_judge(options, ledger)
    else:
        own = dataclasses.replace(options, judge_prompt=None)
        judge = with_chatml(open_judge(own, ledger), prompt)
    return _requiring_logprobs(judge) if require_logprobs else judge


def _requiring_logprobs(judge: PairJudge) -> PairJudge:
    if not isinstance(judge, Judge) or not isinstance(judge.read, TokenPreference):
        raise UserError("`--require-logprobs` is for judges with `verdict: tokens`")
    return dataclasses.replace(judge, read=dataclasses.replace(judge.read, required=True))


def _refuse_lacking(benchmark: Benchmark) -> None:
    for prompt in benchmark.prompts:
        if prompt.text is None or prompt.baseline is None:
            what = "`instruction`" if prompt.text is None else "`baseline_output`"
            raise UserError(
                f"{benchmark.path}: prompt {prompt.name} has no {what}, which judging needs; give "
                "the baseline's answers there or by `--baseline`"
            )
