"""Answers that models are asked for, where an evaluator else reads them from files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from alignment.core.rows import read_rows
from alignment.llm.connect import connect, open_ledger, run_rows
from alignment.llm.options import CallOptions
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Request, Sampling
from alignment.llm.rows import Named, Output, Reject, Row, prompt_of

ANSWERS, BASELINE = "answers.jsonl", "baseline.jsonl"


@dataclass(kw_only=True)
class AnswerOptions(CallOptions):
    """Options of an evaluator of answers, which stand in files or come from models."""

    answers: tuple[Path, ...] = field(
        default=(), metadata={"help": "files of rows with `prompt` and `response`, one a model"}
    )
    baseline: Path | None = field(
        default=None, metadata={"help": "file of answers that the others are compared with"}
    )
    model: str | None = field(
        default=None, metadata={"help": "model to ask for answers, in the place of `--answers`"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    baseline_model: str | None = field(
        default=None, metadata={"help": "the same for the baseline, in the place of `--baseline`"}
    )
    baseline_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    format: Literal["chat", "complete"] = field(
        default="chat",
        metadata={"help": "whether a text prompt is a user's message or a text to go on with"},
    )
    temperature: float = field(default=0.7, metadata={"help": "of these answers; 0 is greedy"})
    answer_tokens: int = field(default=2048, metadata={"help": "the longest of them, tokens"})
    stop: tuple[str, ...] = field(
        default=(), metadata={"help": "texts that end an answer, such as the human's next turn"}
    )
    answer_seed: int = field(default=0, metadata={"help": "seed of their draws"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for model, files in (("model", "answers"), ("baseline_model", "baseline")):
            if getattr(self, model) is not None and getattr(self, files):
                flags = (f"--{name.replace('_', '-')}" for name in (model, files))
                raise ValueError("give `{}` to be asked or `{}`, not both".format(*flags))


Options = TypeVar("Options", bound=AnswerOptions)


def answered(options: Options, prompts: Path, folder: Path) -> Options:
    """The options with files in the place of models: those are asked first, one after the other.

    Args:
        options: Which models, and how to ask.
        prompts: File of prompts.
        folder: Where the answers go, as `answers.jsonl` and `baseline.jsonl`.

    Raises:
        UserError: The prompts cannot be read, or a model cannot be asked or answers nothing.
        SystemExit: After a dry run, if a model is to be asked.
    """
    if options.model is not None:
        _ask(options, options.model, options.base_url, prompts, folder / ANSWERS)
        options = replace(options, model=None, answers=(folder / ANSWERS,))
    if options.baseline_model is not None:
        _ask(options, options.baseline_model, options.baseline_url, prompts, folder / BASELINE)
        options = replace(options, baseline_model=None, baseline=folder / BASELINE)
    return options


def rejects_of(answers: Path) -> Path:
    """The file beside a file of answers that says which prompts have none, and why.

    It need not be there; `alignment generate` leaves it too.
    """
    return Output(answers).rejects


def unanswered(answers: Path) -> set[str]:
    """The prompts that a model was asked and gave no answer to, by the rejects beside its answers.

    A prompt that was asked several times may have answers all the same.

    Args:
        answers: The file of answers.

    Raises:
        UserError: The rejects cannot be read.
    """
    rejects, prompts = rejects_of(answers), set()
    for _, rejected in read_rows(rejects) if rejects.is_file() else ():
        with suppress(Reject):  # a row without a prompt asks nothing
            prompts.add(as_text(prompt_of(rejected.get("row") or {})))
    return prompts


def _ask(
    options: AnswerOptions, model: str, base_url: str | None, prompts: Path, output: Path
) -> None:
    sampling = Sampling(
        options.temperature,
        max_tokens=options.answer_tokens,
        seed=options.answer_seed,
        stop=options.stop,
    )
    with open_ledger(output, options) as ledger:
        llm = connect(model, base_url, ledger, options)

        async def answer(row: Row) -> list[Row]:
            prompt = prompt_of(row)
            plain = options.format == "complete" and isinstance(prompt, str)
            asked = prompt if plain else as_messages(prompt)
            request = Request("complete" if plain else "chat", asked, (), sampling, row["sample"])
            reply = await llm.ask(request, keep_truncated=True)
            told = {"finish_reason": reply.finish_reason, "sampling": sampling.settings()}
            return [{"prompt": prompt, "response": reply.text, **told, **llm.source}]

        later = "what other models answer, and what is said of all answers"
        report = run_rows(options, [llm], _rows(prompts), answer, output, later=later)
        report.refuse_empty(prompts)


def _rows(prompts: Path) -> Iterator[Named]:
    """The rows with `sample`: a prompt that comes back is answered anew."""
    seen: Counter[str] = Counter()
    for name, row in read_rows(prompts):
        try:
            text = as_text(prompt_of(row))
        except Reject:
            text = ""  # told, and counted, where it is asked
        yield name, {**row, "sample": seen[text]}
        seen[text] += 1
