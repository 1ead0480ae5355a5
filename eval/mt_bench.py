"""MT-Bench: conversations of two turns in eight categories, rated or compared by a judge.

Paper: "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv 2306.05685. Differs: the
judge's prompts are ours, so that ratings of a run compare with one another and not with published
ones; a verdict that cannot be read is asked for again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from alignment.cli import UserError, check_counts, parse, run, tell
from alignment.core.rows import read_rows
from alignment.llm.connect import connect, open_ledger, run_rows
from alignment.llm.protocol import Message, Sampling
from alignment.llm.rows import Row
from eval.answers import warn_of_repetition
from eval.bundle import MANIFEST, seal, unseal, write_lines
from eval.judge import ORDERS, Comparison, Judge, Side, Verdict, VerdictError, compare_in
from eval.judge_files import JudgeOptions, open_judge, read_judge
from eval.judgments import TURNS, average, intervals, judged_again, read_judgments, refuse_unjudged
from eval.questions import Answers, Question, are_official, read_answers, read_questions
from eval.stats import check_seed

logger = logging.getLogger(__name__)

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Of answers, by category; 0 for the rest."""

_QUESTION = {f"{part}_{turn}" for part in ("question", "reference") for turn in TURNS}
FIELDS = {
    "single": _QUESTION | {f"answer_{turn}" for turn in TURNS},
    "pair": _QUESTION | {f"{side}_{turn}" for side in ("first", "second") for turn in TURNS},
}
"""What the prompt file of each grading may show; of turn 2 nothing while turn 1 is judged."""

VERDICTS = {"single": ("rating",), "pair": ("letter", "tokens")}
"""What the judge of each grading may say; a reward model reads no prompt file of two turns."""


@dataclass(kw_only=True)
class Options(JudgeOptions):
    """Options of `alignment eval mt_bench`: judge answers, or average what was judged before."""

    judgments: Path | None = field(
        default=None, metadata={"help": "judgments to average; nothing is asked"}
    )
    bundle: Path | None = field(
        default=None, metadata={"help": "folder of a run to recompute; nothing is asked"}
    )
    questions: Path | None = field(
        default=None, metadata={"help": "questions in FastChat's layout"}
    )
    references: Path | None = field(
        default=None, metadata={"help": "reference answers in FastChat's layout"}
    )
    answers: tuple[Path, ...] = field(
        default=(), metadata={"help": "answers in FastChat's layout; unset, `--model` is asked"}
    )
    output: Path | None = field(
        default=None, metadata={"help": "folder for answers, verdicts, results and bundle"}
    )
    model: str | None = field(default=None, metadata={"help": "the model that answers"})
    base_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    max_tokens: int = field(default=1024, metadata={"help": "longest answer"})
    grading: Literal["single", "pair"] = field(
        default="single", metadata={"help": "single: ratings; pair: both orders against a baseline"}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "for pairs: the model in `--answers` that the others meet"}
    )
    judge: str = field(
        default="", metadata={"help": "YAML of the judge; `mt_bench_single` or `_pair` if unset"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the answers and of the bootstrap"})
    resamples: int = field(default=10_000, metadata={"help": "resamples of the bootstrap"})
    allow_missing: bool = field(
        default=False, metadata={"help": "report although fewer than 95% of rows are judged"}
    )
    json: str | None = field(
        default=None, metadata={"help": "file for the means as JSON; `-` is standard output"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "resamples")
        check_seed(self)
        sources = [self.judgments, self.bundle, self.output]
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "give one of `--judgments FILE` and `--bundle FOLDER` to average what was judged, "
                "or `--output FOLDER` to judge"
            )
        if self.output is not None:
            if self.questions is None:
                raise ValueError("`--questions` is needed to judge")
            if bool(self.answers) == (self.model is not None):
                raise ValueError("give `--model` to be asked or `--answers` of models, not both")
        if (self.grading == "pair") != (self.baseline is not None):
            raise ValueError("`--grading pair` and `--baseline MODEL` go together")
        if self.baseline is not None and not self.answers:
            raise ValueError("`--grading pair` compares models in `--answers`")
        self.judge = self.judge or f"mt_bench_{self.grading}"


def answer(options: Options, questions: Sequence[Question], output: Path) -> None:
    """Asks the model all questions, each second turn after the model's own first answer.

    Raises:
        UserError: The model cannot be asked, or answers nothing.
    """
    with open_ledger(output, options) as ledger:
        llm = connect(str(options.model), options.base_url, ledger, options)

        async def converse(row: Row) -> list[Row]:
            question = row["question"]
            temperature = TEMPERATURES.get(question.category, 0.0)
            sampling = Sampling(temperature, max_tokens=options.max_tokens, seed=options.seed)
            messages: list[Message] = []
            for turn in question.turns:
                messages.append({"role": "user", "content": turn})
                reply = await llm.chat(messages, sampling, keep_truncated=True)
                messages.append({"role": "assistant", "content": reply.text})
            said = [message["content"] for message in messages[1::2]]
            named = {"question_id": question.id, "category": question.category, "model": llm.model}
            return [{**named, "turns": said, "sampling": sampling.settings(), **llm.source}]

        rows = ((f"question {each.id}", {"question": each}) for each in questions)
        report = run_rows(
            *(options, [llm], rows, converse, output),
            total=len(questions),
            later="second turns and all verdicts",
        )
        report.refuse_empty(str(options.questions))


def shown(question: Question, turn: int, **said: Sequence[str]) -> dict[str, str]:
    """The fields of the judge's prompt file for a turn: that turn and what came before it.

    Args:
        question: What was asked.
        turn: 1 or 2.
        **said: Prefix of a field -> the two answers of an assistant.
    """
    parts = {"question": question.turns, "reference": question.reference or ("", ""), **said}
    return {
        f"{name}_{number}": texts[number - 1] if number <= turn else ""
        for name, texts in parts.items()
        for number in TURNS
    }


async def rated(
    judge: Judge[float], question: Question, turn: int, said: Sequence[str]
) -> dict[str, Any]:
    """The rating of one turn as columns of a verdict."""
    try:
        score, reply = await judge.ask(**shown(question, turn, answer=said))
    except VerdictError as error:
        return {"judgment": error.text, "score": None, "fault": error.fault}
    return {"judgment": reply.text, "score": score, "fault": None}


async def compared(
    judge: Judge[Any], question: Question, turn: int, said: Sequence[str], baseline: Sequence[str]
) -> dict[str, Any]:
    """Both orders of one turn as columns of a verdict: a win only where both orders agree."""

    async def prefer(first: Side) -> Verdict:
        sides = (said, baseline) if first == "answer" else (baseline, said)
        fields = shown(question, turn, first=sides[0], second=sides[1])
        return Verdict.of(*await judge.ask(**fields))

    alike = list(said[:turn]) == list(baseline[:turn])
    made = Comparison(0.5, ()) if alike else await compare_in(ORDERS, prefer)
    faults = [vote.fault for vote in made.votes if vote.fault]
    score = 0.5 if made.score is not None and made.consistent is False else made.score
    if score is not None:
        score = 0.5 if score == 0.5 else float(score > 0.5)
    votes = [vote._asdict() for vote in made.votes]
    return {"score": score, "fault": faults[0] if faults else None, "votes": votes}


def judge_all(
    options: Options, questions: Sequence[Question], answers: Answers, output: Path
) -> dict[str, Any]:
    """Judges both turns of all answers; one that is missing is a row without a score.

    Returns:
        The identity of the judge.

    Raises:
        UserError: The judge cannot be asked.
    """
    baseline = answers[options.baseline] if options.baseline is not None else {}
    with open_ledger(output, options) as ledger:
        opened = open_judge(options, ledger, FIELDS[options.grading], VERDICTS[options.grading])
        judge = cast("Judge[Any]", opened)  # no reward model, by its verdicts

        async def verdict(model: str, question: Question, turn: int) -> Row:
            said, other = answers[model].get(question.id), baseline.get(question.id)
            if said is None or (options.baseline is not None and other is None):
                made: dict[str, Any] = {"score": None, "fault": "no answer"}
            elif other is None:
                made = await rated(judge, question, turn, said)
            else:
                made = await compared(judge, question, turn, said, other)
            against = {} if options.baseline is None else {"baseline": options.baseline}
            named = {"question_id": question.id, "category": question.category, "model": model}
            by = [judge.llm.model, judge.template.path.name]
            return {**named, **against, "judge": by, "turn": turn, **made}

        async def judged(row: Row) -> list[Row]:
            return [await verdict(row["model"], row["question"], turn) for turn in TURNS]

        rows = [
            (f"{model}, question {question.id}", {"model": model, "question": question})
            for model in answers
            if model != options.baseline
            for question in questions
        ]
        run_rows(options, [judge.llm], rows, judged, output, total=len(rows))
        return judge.identity()


def evaluate(options: Options) -> dict[str, Any]:
    """Answers, judges and averages; writes a bundle with `results.json` into the output folder.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: Files do not fit, a model cannot be asked, or too little is judged.
    """
    folder = Path(str(options.output))
    read_judge(options.judge, VERDICTS[options.grading])  # before the model is asked
    questions = read_questions(Path(str(options.questions)), options.references)
    files = options.answers
    if options.model is not None:
        files = (folder / "answers.jsonl",)
        answer(options, questions, files[0])
    answers = read_answers(files, questions)
    if options.baseline is not None and (options.baseline not in answers or len(answers) < 2):
        told = ", ".join(answers)
        raise UserError(f"no pair with `--baseline {options.baseline}`; the models are {told}")
    repeated = {
        model: warn_of_repetition(model, [turns[0] for turns in said.values()])
        for model, said in answers.items()
    }
    if not options.dry_run:
        for name in ("results.json", MANIFEST):
            (folder / name).unlink(missing_ok=True)
    judge = judge_all(options, questions, answers, folder / "verdicts.jsonl")
    # What was judged lies beside the verdicts, wherever it came from.
    if options.model is None:
        write_lines(folder / "answers.jsonl", [row for path in files for _, row in read_rows(path)])
    settings = {"seed": options.seed, "resamples": options.resamples}
    seal(folder, "mt_bench", judge, settings, ("answers.jsonl", "verdicts.jsonl"))
    results = {
        **summarise(folder / "verdicts.jsonl", options.seed, options.resamples),
        **{"grading": options.grading, "judge": judge, "repeated": repeated},
        "official_questions": are_official(questions),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def summarise(
    judgments: Path, seed: int, resamples: int, categories: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The numbers of a report from a file of judgments.

    Args:
        judgments: As `read_judgments` takes them.
        seed: Seed of the bootstrap.
        resamples: Resamples of the bootstrap.
        categories: Question id -> category, for rows that do not say.
    """
    rows = read_judgments(judgments, categories)
    for model, count in judged_again(rows).items():
        logger.warning("%s: %d turns are judged more than once; all count", model, count)
    return {
        "models": average(rows),
        "intervals": intervals(rows, seed, resamples),
        "seed": seed,
        "resamples": resamples,
    }


def main(argv: list[str]) -> None:
    """`alignment eval mt_bench`."""
    options = parse(Options, argv, "alignment eval mt_bench", __doc__)
    if options.output is not None:
        results = evaluate(options)
    elif options.bundle is not None:
        bundle = unseal(options.bundle, "mt_bench")
        results = summarise(bundle.folder / "verdicts.jsonl", **bundle.settings)
    else:
        categories = {}
        if options.questions is not None:
            categories = {each.id: each.category for each in read_questions(options.questions)}
        results = summarise(
            Path(str(options.judgments)), options.seed, options.resamples, categories
        )
    if not options.allow_missing:
        refuse_unjudged(results["models"])
    tell({"models": results["models"]}, options.json, table(results))


def table(results: Mapping[str, Any]) -> list[str]:
    """The means of a report with their intervals, a line for each."""
    lines = []
    for model, means in results["models"].items():
        lines.append(f"{model}: {means['rows']} rows, {means['unjudged']} unjudged")
        named = {name: means[name] for name in ("turn1", "turn2", "average")}
        for name, mean in {**named, **means["by_category"]}.items():
            if mean is not None:
                low, high = results["intervals"][model][name]
                lines.append(f"  {name:<12} {mean:7.3f}  95% interval [{low:.3f}, {high:.3f}]")
    return lines


if __name__ == "__main__":
    run(main)
