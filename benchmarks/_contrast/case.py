"""A builder on the small world: what it is given, what its construction predicts, how it is scored.

A file of this package defines `CASES`, a tuple of `Case`; nothing else has to know of it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from alignment.__main__ import dispatch
from alignment.core.groups import Group, RowError, binarise, group_from_row, text_of
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.quickstart import world
from data_builders.statistics import format_of, sides

Score = Callable[[Group], "float | None"]

PACKAGE = "benchmarks._contrast"


def contrast(group: Group) -> float | None:
    """Whether the chosen side is better than the rejected one: 1, 0.5 where both are alike, or 0.

    Of scored groups the best and the worst response are compared; None where there is no pair.
    """
    if format_of(group) == "group":
        try:
            group, _ = binarise(group, seed=0)
        except RowError:
            return None
    prompt = as_text(group.prompt)
    chosen, rejected = (world.is_right(prompt, text_of(side.content)) for side in sides(group))
    return 0.5 + (chosen - rejected) / 2


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        builder: Its name.
        variant: What tells this row from others of the builder.
        words: Writes the input into a folder and returns the words after `alignment build BUILDER`,
            without `--output`; takes the folder, the number of prompts, and the seed.
        predicted: The mean score that the construction gives.
        why: The arithmetic behind it.
        score: Of an output row, which it may leave out with None; `contrast` by default.
    """

    builder: str
    variant: str
    words: Callable[[Path, int, int], Sequence[object]]
    predicted: float
    why: str
    score: Score = field(default=contrast)


@dataclass(frozen=True)
class Result:
    """What a case came to.

    Attributes:
        builder: As of the case.
        variant: As of the case.
        predicted: As of the case.
        measured: Mean score.
        error: Its standard error.
        rows: Rows scored.
        dropped: Input rows that gave none.
        why: As of the case.
    """

    builder: str
    variant: str
    predicted: float
    measured: float
    error: float
    rows: int
    dropped: int
    why: str

    @property
    def agrees(self) -> bool:
        """Whether the measured value is within four standard errors of the predicted one."""
        return abs(self.measured - self.predicted) <= 4 * self.error + 1e-9


def measure(case: Case, prompts: int, seed: int) -> Result:
    """Builds a case's data set in a folder of its own and scores it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.jsonl"
        words = ["build", case.builder, *case.words(Path(folder), prompts, seed)]
        dispatch([*map(str, words), "--output", str(output)])
        groups = [group_from_row(row) for _, row in read_rows(output)]
        report = json.loads(Path(f"{output}.report.json").read_text(encoding="utf-8"))
    scores = [score for group in groups if (score := case.score(group)) is not None]
    return Result(
        case.builder,
        case.variant,
        case.predicted,
        fmean(scores),
        pstdev(scores) / math.sqrt(len(scores)),
        len(scores),
        sum(report["dropped"].values()),
        case.why,
    )


def program(name: str) -> str:
    """The `--model` that names a function of this package, such as `clair.reviser`."""
    return f"program:{PACKAGE}.{name}"


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
