"""Questions of two turns, references and answers to them, in the layouts of FastChat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.rows import Row

REFERENCED = frozenset({"reasoning", "math", "coding"})
"""Categories whose judge sees a reference, where the question has one."""

OFFICIAL = "923e6d2726961eca905da8fe5e799e9a677907a576e121666a347fbbaed25320"
"""SHA-256 of ids, categories and turns of MT-Bench's 80 questions, as JSON."""

Answers: TypeAlias = "Mapping[str, Mapping[str, Sequence[str]]]"
"""Model -> question id -> its answer to each turn."""


class Question(NamedTuple):
    """A question of two turns.

    Attributes:
        id: Its id.
        category: One of eight.
        turns: The two questions.
        reference: Answers known to be good, for each turn; empty where there are none.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...]


def read_questions(path: Path, references: Path | None = None) -> list[Question]:
    """The questions of a file, with references for the categories that are judged by them.

    Args:
        path: Rows with `question_id`, `category`, `turns` and perhaps `reference`.
        references: Rows with `question_id` and the answers; these go before the file's own.

    Raises:
        UserError: A row is incomplete or doubled; it is named.
    """
    known = {question: turns for _, question, _, turns in _rows(references)} if references else {}
    questions: dict[str, Question] = {}
    for name, question, row, turns in _rows(path):
        category = row.get("category")
        if not isinstance(category, str):
            raise UserError(f"{name}: question {question} has no `category`")
        if question in questions:
            raise UserError(f"{name}: question {question} stands twice in the file")
        reference = known.get(question) or row.get("reference") or ()
        if category not in REFERENCED:
            reference = ()
        if reference and not _is_pair(reference):
            raise UserError(
                f"{name}: `reference` must be a list of two texts, one for each turn; mend it, or "
                "leave it out where there is none"
            )
        questions[question] = Question(question, category, turns, tuple(reference))
    if not questions:
        raise UserError(f"{path}: the file holds no questions")
    return [*questions.values()]


def read_answers(paths: Sequence[Path], questions: Sequence[Question]) -> Answers:
    """The answers of files by model and question.

    Args:
        paths: Rows with `question_id`, `model` or `model_id`, and `turns` or `choices`, of which
            the first counts.
        questions: What they answer.

    Raises:
        UserError: A row is incomplete, doubled, or answers a question that is not there; or a
            model answers no question.
    """
    known = {question.id for question in questions}
    answers: dict[str, dict[str, Sequence[str]]] = {}
    for path in paths:
        for name, question, row, turns in _rows(path):
            model = row.get("model", row.get("model_id"))
            if not isinstance(model, str):
                raise UserError(f"{name}: the answer has no `model`")
            if question not in known:
                raise UserError(f"{name}: there is no question {question} among the questions")
            if question in answers.setdefault(model, {}):
                raise UserError(f"{name}: {model} answers question {question} twice")
            answers[model][question] = turns
    if not answers:
        raise UserError(f"{paths[0]}: the file holds no answers")
    return answers


def are_official(questions: Sequence[Question]) -> bool:
    """Whether these are MT-Bench's own questions, in their order."""
    told = [[each.id, each.category, list(each.turns)] for each in questions]
    text = json.dumps(told, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() == OFFICIAL


def _rows(path: Path) -> Iterator[tuple[str, str, Row, tuple[str, ...]]]:
    """Name, question id, row and turns of each row of a file."""
    for name, row in read_rows(path):
        turns: Any = row.get("turns")
        if turns is None and row.get("choices"):
            turns = row["choices"][0].get("turns")
        if not _is_pair(turns):
            raise UserError(f"{name}: `turns` must be two texts")
        if row.get("question_id") is None:
            raise UserError(f"{name}: there is no `question_id`")
        yield name, str(row["question_id"]), row, (*turns,)


def _is_pair(turns: Any) -> bool:
    """Whether this is a list or tuple of two texts."""
    is_pair = isinstance(turns, list | tuple) and len(turns) == 2
    return is_pair and all(isinstance(turn, str) for turn in turns)
