"""AlpacaEval's files: prompts, reference rows, and verdicts in this project's or its own columns.

Rows are matched by prompt, never by position: by `index`, by the text of `instruction`, or both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, shorten
from alignment.llm.rows import Reject, Row, prompt_of
from eval.length_control import Rows

_ANSWER = ("output_2", "output", "response")
_BASELINE = ("baseline_output", "output_1", "output", "response")
_MODEL = ("generator_2", "model", "generator")


class Prompt(NamedTuple):
    """A prompt of a benchmark.

    Attributes:
        name: What reports call it: its `index`, or else its position.
        text: What is asked, None where the file shows indices alone.
        baseline: The baseline's answer, None where no file holds one.
        difficulty: The fixed difficulty, None where the file holds none.
    """

    name: int
    text: str | None
    baseline: str | None
    difficulty: float | None


class Annotation(NamedTuple):
    """A verdict on a model's answer to a prompt.

    Attributes:
        prompt: Position of the prompt in the benchmark.
        row: Position in the model's own file of verdicts, which published numbers go by.
        answer: The model's answer, None where the file holds none.
        baseline: The baseline's answer as the row shows it, None where it shows none.
        preference: For the model, in [0, 1]; None where the judge gave none.
    """

    prompt: int
    row: int
    answer: str | None
    baseline: str | None
    preference: float | None


class Benchmark:
    """The prompts of a file, to be found by index or by text.

    Args:
        path: File of prompts: `index`, `instruction` (or `prompt`), `baseline_output` (or
            `output`), `instruction_difficulty`, of which an index or a text must be there.
        baseline: File of other baseline answers to the same prompts.

    Attributes:
        prompts: In the order of the file.
        baseline_name: What the files call the baseline, None where they do not.

    Raises:
        UserError: A row cannot be read, prompts are doubled, or the baseline answers others.
    """

    def __init__(self, path: Path, baseline: Path | None = None) -> None:
        rows = list(read_rows(path))
        if not rows:
            raise UserError(f"{path}: the file holds no prompts")
        self.path = path
        self._indexed = "index" in rows[0][1]
        self.prompts = [_prompt(name, row, place) for place, (name, row) in enumerate(rows)]
        self._by_name = {prompt.name: place for place, prompt in enumerate(self.prompts)}
        self._by_text = {
            p.text: place for place, p in enumerate(self.prompts) if p.text is not None
        }
        texts = sum(prompt.text is not None for prompt in self.prompts)
        if len(self._by_name) < len(rows) or len(self._by_text) < texts:
            twice = Counter(p.text if p.text is not None else p.name for p in self.prompts)
            ((which, _),) = (twice + Counter(p.name for p in self.prompts)).most_common(1)
            raise UserError(f"{path}: the prompt `{shorten(which)}` stands there twice")
        names = {str(row[key]) for _, row in rows for key in ("baseline_model",) if row.get(key)}
        self.baseline_name = names.pop() if len(names) == 1 else None
        if baseline is not None:
            self._answer_by(baseline)

    def __len__(self) -> int:
        return len(self.prompts)

    def find(self, name: str, row: Row) -> int | None:
        """The position of a row's prompt, None for a prompt that is not in the benchmark.

        Args:
            name: The row's name, for messages.
            row: With `index`, `instruction` or `prompt`.

        Raises:
            UserError: The row names no prompt in a way that the benchmark's file does.
        """
        index = row.get("index") if self._indexed else None
        text = _text_of(row) if self._by_text else None
        if index is None and text is None:
            columns = "`index` or `instruction`" if self._indexed else "`instruction`"
            raise UserError(
                f"{name}: no {columns} by which {self.path.name} would know the prompt; rows are "
                "never matched by position"
            )
        by_index = None if index is None else self._by_name.get(_whole(name, "index", index))
        by_text = None if text is None else self._by_text.get(text)
        if index is None or text is None:
            return by_text if index is None else by_index
        return by_text if by_text == by_index else None

    def rows(self) -> list[Row]:
        """Rows of a file that this very benchmark can be read from."""
        return [
            {
                "index": prompt.name,
                "instruction": prompt.text,
                "baseline_model": self.baseline_name,
                "baseline_output": prompt.baseline,
                "instruction_difficulty": prompt.difficulty,
            }
            for prompt in self.prompts
        ]

    def place_of_row(self, row: int) -> int:
        """The position of the prompt whose index is a row's number, as published numbers pair them.

        Raises:
            UserError: There is no such prompt.
        """
        if row not in self._by_name:
            raise UserError(f"row {row} of the verdicts is beyond the prompts of {self.path}")
        return self._by_name[row]

    def _answer_by(self, path: Path) -> None:
        """Takes the baseline's answers from a file.

        Raises:
            UserError: It answers other prompts, or one twice.
        """
        answers: dict[int, str] = {}
        names = set()
        for name, row in read_rows(path):
            place = self.find(name, row)
            answer = _first(row, _BASELINE)
            if place is None or place in answers:
                told = "is not in" if place is None else "is answered twice for"
                raise UserError(
                    f"{name}: the prompt `{shorten(_label(row))}` {told} {self.path}; baseline and "
                    "answers must be to the same prompts"
                )
            if not isinstance(answer, str):
                raise UserError(f"{name}: no `output` with the baseline's answer")
            answers[place] = answer
            names.add(str(_first(row, ("generator", "model")) or path.stem))
        lacking = [prompt.name for place, prompt in enumerate(self.prompts) if place not in answers]
        if lacking:
            raise UserError(
                f"{path} answers {len(answers)} of {len(self)} prompts of {self.path}; the first "
                f"without an answer is {lacking[0]}"
            )
        self.prompts = [p._replace(baseline=answers[i]) for i, p in enumerate(self.prompts)]
        self.baseline_name = names.pop() if len(names) == 1 else path.stem


@dataclass
class Annotations:
    """The verdicts on one model, one for each prompt, and what did not fit.

    Attributes:
        model: Name of the model, None where the file has none.
        rows: One annotation for each prompt that has one, in the order of `row`.
        missing: Names of prompts without a row.
        doubled: Names of prompts with several rows; rows that contradict each other are dropped.
        foreign: Rows whose prompt is not in the benchmark, as the file names it.
        n_rows: Rows of the model in the file.
    """

    model: str | None
    rows: list[Annotation] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    n_rows: int = 0

    @property
    def judged(self) -> int:
        """Rows with a preference."""
        return sum(row.preference is not None for row in self.rows)


def read_annotations(path: Path, benchmark: Benchmark, model: str | None = None) -> Annotations:
    """The verdicts on a model.

    Args:
        path: Rows with `preference` in [1, 2] (0 or 1.5 is a draw, null unjudged) and the prompt.
        benchmark: The prompts.
        model: Which model's rows; needed where the file holds those of several.

    Raises:
        UserError: A row cannot be read, or the file holds nothing of this model and benchmark.
    """
    named = list(read_rows(path))
    found = Annotations(_model_of(path, named, model))
    first: dict[int, Annotation] = {}
    torn = set()
    for name, row in named:
        if found.model is not None and str(_first(row, _MODEL)) != found.model:
            continue
        place, found.n_rows = benchmark.find(name, row), found.n_rows + 1
        if place is None:
            found.foreign.append(f"{name}: {shorten(_label(row), 60)}")
            continue
        made = _annotation(name, row, place, found.n_rows - 1)
        earlier = first.setdefault(place, made)
        if earlier is not made:
            found.doubled.append(benchmark.prompts[place].name)
            if earlier[2:] != made[2:]:
                torn.add(place)
    if not first:
        raise UserError(
            f"{path}: none of {found.n_rows} rows is on a prompt of {benchmark.path}; the first is "
            f"{found.foreign[0] if found.foreign else 'missing'}"
        )
    kept = [row for place, row in first.items() if place not in torn]
    found.rows = sorted(kept, key=lambda row: row.row)
    found.missing = [p.name for place, p in enumerate(benchmark.prompts) if place not in first]
    return found


def read_reference(path: Path, benchmark: Benchmark) -> Rows:
    """The reference rows of the length-controlled model.

    Args:
        path: Rows with `index`, `std_delta_len` (baseline's length less the row's, over its
            standard deviation), `instruction_difficulty`, and `preference` in [0, 1].
        benchmark: The prompts.

    Raises:
        UserError: A row cannot be read or is on a prompt that is not in the benchmark.
    """
    rows = []
    for name, row in read_rows(path):
        place = benchmark.find(name, row)
        if place is None:
            raise UserError(f"{name}: its prompt `{_label(row)}` is not in {benchmark.path}")
        columns = ("std_delta_len", "instruction_difficulty", "preference")
        length, difficulty, target = (_number(name, column, row.get(column)) for column in columns)
        if not 0 <= target <= 1:
            raise UserError(f"{name}: `preference` is {target}; in reference rows it is in [0, 1]")
        rows.append((length, difficulty, target, place))
    if not rows:
        raise UserError(f"{path}: the file holds no reference rows")
    length, difficulty, target, place = np.array(rows, dtype=np.float64).T
    return Rows(np.tanh(length), difficulty, target, place.astype(np.int64))


def _prompt(name: str, row: Row, place: int) -> Prompt:
    index = place if row.get("index") is None else _whole(name, "index", row["index"])
    text, baseline = _text_of(row), _first(row, _BASELINE)
    if text is None and row.get("index") is None:
        raise UserError(f"{name}: a prompt needs an `instruction`, a `prompt` or an `index`")
    if not isinstance(baseline, str | None):
        raise UserError(f"{name}: the baseline's answer must be text, got `{shorten(baseline)}`")
    told = row.get("instruction_difficulty")
    difficulty = None if told in (None, "") else _number(name, "instruction_difficulty", told)
    return Prompt(index, text, baseline, difficulty)


def _annotation(name: str, row: Row, place: int, position: int) -> Annotation:
    answer, baseline = _first(row, _ANSWER), row.get("output_1")
    for column, value in (("output", answer), ("output_1", baseline)):
        if not isinstance(value, str | None):
            raise UserError(f"{name}: `{column}` must be text, got `{shorten(value)}`")
    if "preference" not in row:
        raise UserError(f"{name}: no column `preference`; there is {', '.join(row)}")
    at = position if row.get("row") is None else _whole(name, "row", row["row"])
    return Annotation(place, at, answer, baseline, _preference(name, row["preference"]))


def _preference(name: str, value: Any) -> float | None:
    """In [0, 1], from AlpacaEval's scale; None for a verdict that there is not."""
    if value is None or value == "":
        return None
    told = _number(name, "preference", value, allow_nan=True)
    if math.isnan(told):
        return None
    if told == 0:
        return 0.5
    if not 1 <= told <= 2:
        raise UserError(
            f"{name}: `preference` is {told}; it is between 1 (the baseline wins) and 2 (the model "
            "wins), or 0 for a draw"
        )
    return told - 1


def _number(name: str, column: str, value: Any, *, allow_nan: bool = False) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number) or (math.isnan(number) and (isinstance(value, bool) or not allow_nan)):
        raise UserError(f"{name}: `{column}` must be a number, got `{shorten(value)}`")
    return number


def _whole(name: str, column: str, value: Any) -> int:
    number = _number(name, column, value)
    if number != int(number) or number < 0:
        raise UserError(f"{name}: `{column}` must be a whole number from 0, got `{value}`")
    return int(number)


def _first(row: Row, columns: Iterable[str]) -> Any:
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _text_of(row: Row) -> str | None:
    try:
        return as_text(prompt_of(row))
    except Reject:
        return None


def _label(row: Row) -> str:
    return str(row["index"]) if row.get("index") is not None else str(_text_of(row))


def _model_of(path: Path, rows: Sequence[tuple[str, Row]], model: str | None) -> str | None:
    """Whose rows are meant; None where the file does not name models.

    Raises:
        UserError: There is no such model, or there are several and none is named.
    """
    known = {str(name): None for _, row in rows if (name := _first(row, _MODEL)) is not None}
    if not known and model is None:
        return None
    if model is None and len(known) == 1:
        return next(iter(known))
    if model in known:
        return model
    told = ", ".join(known) or "none"
    if model is None:
        raise UserError(f"{path} holds verdicts on {told}; name one with `--model`")
    raise UserError(f"{path} holds no verdicts on `{model}`; it has those on {told}")
