"""What may enter a round: each prompt once, and none that the model is evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Prompt
from alignment.llm.rows import MapReport, Named, Output, Reject, Row, prompt_of, reject_row
from alignment.quickstart.inputs import as_asked, distinct_prompts
from data_builders.overlap import EvalPrompts

VERSION = "1"
"""Of the way in which prompts are ordered and looked for."""


def write_prompts(output: Path, source: Path, model: str) -> None:
    """Writes each prompt of a file once, in the form that a model is asked in.

    Raises:
        UserError: The file cannot be read, or holds no prompts.
    """
    prompts = distinct_prompts(source)
    if not prompts:
        raise UserError(f"{source} holds no prompts; give a file with some")
    with Output(output) as file:
        for prompt in as_asked(prompts, model, output.parent):
            file.write({"prompt": prompt})


def shuffled(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Prompts in an order of their content and the seed; one more or less moves no other."""

    def place(prompt: Prompt) -> bytes:
        text = f"{seed}\0{as_text(prompt)}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).digest()

    return sorted(prompts, key=place)


def write_pool(output: Path, source: Path, held_out: Path, model: str, seed: int) -> None:
    """Writes the prompts that rounds draw from, shuffled, without those of the evaluation.

    Args:
        output: The file; what is left out stands beside with reasons.
        source: The user's file.
        held_out: The file of evaluation prompts.
        model: Whose form prompts take.
        seed: Of the order.

    Raises:
        UserError: A file cannot be read, or nothing is left.
    """
    asked = as_asked(shuffled(distinct_prompts(source), seed), model, output.parent)
    rows = ((f"{source}", {"prompt": prompt}) for prompt in asked)
    admit(rows, held_out, output).refuse_empty(source)


def admit(
    rows: Iterable[Named], held_out: Path, output: Path, most: int | None = None
) -> MapReport:
    """Writes the rows whose prompts are none of the evaluation's; the others are rejected.

    A prompt counts as one of the evaluation's if all words of a turn agree, or 13 in a row, or most
    of its pieces.

    Args:
        rows: Rows with a prompt; those without are rejected too.
        held_out: The file of evaluation prompts.
        output: Where to.
        most: How many to write at most, the first; None for all.

    Returns:
        How many were written, and why others were not.
    """
    evaluation = EvalPrompts([held_out], near=True)
    report = MapReport()
    with Output(output) as file:
        for name, row in rows:
            try:
                _check(row, evaluation)
                if report.kept == most:
                    told = f"the round has {most} rows already; `examples_per_round` sets how many"
                    raise Reject("over_quota", told)
            except Reject as error:
                rejected = reject_row(name, row, error)
                report.drop(rejected)
                file.reject(rejected)
            else:
                report.kept += 1
                file.write(row)
    return report


def _check(row: Row, evaluation: EvalPrompts) -> None:
    """Refuses a row whose prompt is one of the evaluation's, or that has none.

    Raises:
        Reject: It is, or has none.
    """
    found = evaluation.find(prompt_of(row))
    if found is not None:
        told = f"the prompt is one of the evaluation ({found.how}: {found.source})"
        raise Reject("evaluation_prompt", told)


def write_admitted(output: Path, source: Path, held_out: Path, most: int | None = None) -> None:
    """Writes a round's data without rows on evaluation prompts, wherever they came from.

    Raises:
        UserError: Nothing is left.
    """
    admit(read_rows(source), held_out, output, most).refuse_empty(source)
