"""ISARA: new answers from a few seeds, drawn beside the seeds and answers that are nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Message
from alignment.llm.rows import Output, Reject, Row, prompt_of, reject_row, response_of
from alignment.rounds.embedding import embed, nearest
from alignment.rounds.loop import Loop
from alignment.rounds.round import Round
from alignment.rounds.samples import by_prompt
from alignment.rounds.store import here
from data_builders.pairs import like

VERSION = "2"
"""Of the way in which demonstrations are found and answers are kept."""


@dataclass(frozen=True)
class ISARA(Loop):
    """Answers questions beside the nearest good examples, filters, and trains by SFT.

    Paper: Human-Instruction-Free LLM Self-Alignment with Limited Samples, arXiv 2401.06785: fewer
    than 100 question-answer pairs of a domain, no instructions and no rewards; iterating beats one
    large round.

    Differs: the paper's retriever and filter could not be verified. Ours takes the examples whose
    questions are nearest by cosine of a model's mean hidden states, and keeps the commonest of
    several answers if at least `agreement` of them are the same.
    """

    objective: ClassVar[str] = "sft"
    asks: ClassVar[bool] = False

    seeds: Path = field(metadata={"help": "file of question-answer pairs: prompt and completion"})
    demonstrations: int = field(default=2, metadata={"help": "examples beside each question"})
    samples: int = field(default=4, metadata={"help": "answers to each question"})
    agreement: float = field(
        default=0.5, metadata={"help": "share of them that must be the same; 0 keeps the first"}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "model that embeds questions; unset, the one of the start"}
    )

    def __post_init__(self) -> None:
        if min(self.demonstrations, self.samples) < 1:
            raise ValueError("`demonstrations` and `samples` must be at least 1")
        if not 0 <= self.agreement <= 1:
            raise ValueError(f"`agreement` is {self.agreement}; it is a share from 0 to 1")

    def check(self, rounds: int) -> None:
        """Refuses seeds that are not there, or too few to show."""
        if not self.seeds.is_file():
            raise UserError(f"no such file of seeds: {self.seeds}")
        there = sum(1 for _ in read_rows(self.seeds))
        if there < self.demonstrations:
            raise UserError(f"{self.seeds} has {there} rows, fewer than {self.demonstrations}")

    def data(self, at: Round) -> Path:
        """Questions with answers that were drawn beside examples and agreed on."""
        encoder = here(self.encoder) or at.policy.base
        known = [at.admitted(self.seeds, name="seeds"), *at.earlier]
        shown = {"questions": at.prompts, "known": known, "encoder": encoder}
        beside = at.rows(
            "beside",
            lambda output: write_beside(output, at.prompts, known, encoder, self.demonstrations),
            {**shown, "demonstrations": self.demonstrations, "version": VERSION},
        )
        answers = at.generate(beside, samples=self.samples)
        return at.rows(
            "agreed",
            lambda output: write_agreed(output, answers, self.agreement),
            {"answers": answers, "agreement": self.agreement, "version": VERSION},
        )


def write_beside(
    output: Output, questions: Path, known: list[Path], encoder: str | Path, count: int
) -> None:
    """Writes each question after the examples nearest to it, the nearest last.

    Args:
        output: Where to; `question` keeps the question alone.
        questions: Rows with `prompt`.
        known: Files of examples; those without an answer are rejected.
        encoder: Model that embeds questions.
        count: Examples beside each.
    """
    examples = []
    for name, row in chain.from_iterable(map(read_rows, known)):
        try:
            examples.append((prompt_of(row), _answer(row)))
        except Reject as error:
            output.reject(reject_row(name, row, error))
    asked = [prompt_of(row) for _, row in read_rows(questions)]
    texts = [as_text(prompt) for prompt in (*(prompt for prompt, _ in examples), *asked)]
    vectors = embed(texts, encoder)
    for index, question in enumerate(asked, len(examples)):
        turns: list[Message] = []
        for place in reversed(nearest(vectors[index], vectors[: len(examples)], count)):
            prompt, answer = examples[place]
            turns += [*as_messages(prompt), answer]
        output.write({"question": question, "prompt": [*turns, *as_messages(question)]})


def write_agreed(output: Output, answers: Path, agreement: float) -> None:
    """Writes the commonest answer to each question, the first of equal ones, where enough agree.

    Args:
        output: Where to; the stored prompt is the plain question.
        answers: Rows of `alignment generate` with `question`.
        agreement: Share of the answers that must be the same text.
    """
    for name, rows in by_prompt(read_rows(answers)):
        whole = [row for row in rows if row.get("finish_reason") != "length"]
        texts = Counter(text for row in whole if (text := row["response"].strip()))
        if not texts:
            reason = "empty" if whole else "truncated"
            output.reject(reject_row(name, rows[0], Reject(reason, f"no answer of {len(rows)}")))
            continue
        text, count = texts.most_common(1)[0]
        if count < agreement * len(rows):
            told = f"{count} of {len(rows)} answers agree, {agreement:.0%} are needed"
            output.reject(reject_row(name, rows[0], Reject("disagreement", told)))
            continue
        output.write(_kept(rows[0], text, count / len(rows)))


def _kept(row: Row, text: str, share: float) -> dict[str, Any]:
    question = row["question"]
    meta = {"loop": "isara", "agreement": share, "generation_prompt": row["prompt"]}
    return {"prompt": question, "completion": like(question, text), "meta": meta}


def _answer(row: Row) -> Message:
    """The assistant's turn of an example.

    Raises:
        Reject: It has none.
    """
    given = row.get("completion")
    if isinstance(given, list) and given and isinstance(given[-1], Mapping):
        return dict(given[-1])
    return {"role": "assistant", "content": response_of(row)}
