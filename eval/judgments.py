"""Judgments of conversations by turn: read from files, averaged by model, turn and category."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.rows import Row
from eval.stats import ENOUGH_JUDGED
from eval.verdicts import read_rating

TURNS = (1, 2)
_UNJUDGED = -1
"""What FastChat writes for a judgment without a rating."""


class Judgment(NamedTuple):
    """One turn of one model's answer to a question, judged.

    Attributes:
        model: Whose answer.
        question: Id of the question.
        turn: 1 or 2.
        score: A rating, or for a comparison 1, 0.5 or 0; None where it could not be judged.
        category: Of the question, None where it is not known.
        compared: Whether the score is of a comparison.
    """

    model: str
    question: str
    turn: int
    score: float | None
    category: str | None
    compared: bool = False


def read_judgments(path: str | Path, categories: Mapping[str, str] | None = None) -> list[Judgment]:
    """Reads judgments in FastChat's layout or that of this project's `verdicts.jsonl`.

    A row has `question_id`, `model`, `turn` and `score`, or `judgment` alone, in which the rating
    is then looked for; a score of -1 or null was not judged. A row with `g1_winner` compares
    `model_1` and `model_2` in two orders: whoever wins both has won, all else is a tie.

    Args:
        path: The file.
        categories: Question id -> category, for rows that do not say.

    Raises:
        UserError: A row lacks a column or holds no number; the row is named.
    """
    categories = categories or {}
    found = []
    for name, row in read_rows(path):
        try:
            question, turn = str(row["question_id"]), row["turn"]
            if turn not in TURNS or isinstance(turn, bool):
                raise ValueError(f"`turn` must be 1 or 2, got `{turn}`")
            category = row.get("category") or categories.get(question)
            compared = "g1_winner" in row or "votes" in row
            found += [
                Judgment(model, question, turn, score, category, compared)
                for model, score in _scores(row).items()
            ]
        except KeyError as error:
            raise UserError(f"{name}: no column {error}; see docs/evaluation.md") from None
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    if not found:
        raise UserError(f"{path}: the file holds no judgments")
    return found


def average(judgments: Sequence[Judgment]) -> dict[str, dict[str, Any]]:
    """Means by model: every judged row counts once, as FastChat's `show_result` has it.

    Returns:
        Model -> `turn1`, `turn2`, `average` (of both pooled), `rows`, `unjudged` and `by_category`;
        None for a mean of nothing. Rows without a category count in no category. Comparisons have
        `wins`, `losses` and `ties` too.
    """
    made: dict[str, dict[str, Any]] = {}
    for model, rows in _by_model(judgments).items():
        means = {name: _mean(part) for name, part in _parts(rows).items()}
        made[model] = {
            **{name: means.pop(name) for name in ("turn1", "turn2", "average")},
            "rows": len(rows),
            "unjudged": sum(row.score is None for row in rows),
            "by_category": means,
            **(_outcomes(rows) if rows[0].compared else {}),
        }
    return made


def intervals(
    judgments: Sequence[Judgment], seed: int, resamples: int = 10_000
) -> dict[str, dict[str, tuple[float, float]]]:
    """95% bootstrap intervals of the means.

    Questions are drawn, not rows: both turns of a question, and judgments made twice, say less
    together than as many questions would.

    Returns:
        Model -> `turn1`, `turn2`, `average` or category -> lower and upper end.
    """
    made: dict[str, dict[str, tuple[float, float]]] = {}
    for model, rows in _by_model(judgments).items():
        made[model] = {
            name: _interval(part, seed, resamples)
            for name, part in _parts(rows).items()
            if _mean(part) is not None
        }
    return made


def refuse_unjudged(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses means that too many judgments are missing from.

    Args:
        models: As `average` gives them.

    Raises:
        UserError: A model has fewer judged rows than `ENOUGH_JUDGED` demands.
    """
    for model, means in models.items():
        judged = means["rows"] - means["unjudged"]
        if judged < ENOUGH_JUDGED * means["rows"]:
            raise UserError(
                f"only {judged} of {means['rows']} rows of {model} are judged; ask again with "
                "`--resume`, or pass `--allow-missing` to average what there is"
            )


def judged_again(judgments: Sequence[Judgment]) -> Counter[str]:
    """Model -> turns of questions that are judged more than once, all of which are averaged."""
    seen = Counter((row.model, row.question, row.turn) for row in judgments)
    return Counter(model for (model, _, _), count in seen.items() if count > 1)


def _scores(row: Row) -> dict[str, float | None]:
    """Model -> score of a row."""
    if "g1_winner" in row:
        return _compared(row)
    if "score" not in row:
        try:
            return {row["model"]: read_rating(row["judgment"])}
        except ValueError:
            return {row["model"]: None}
    score = row["score"]
    if score is None or score == _UNJUDGED:
        return {row["model"]: None}
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score < math.inf:
        raise ValueError(f"`score` must be a number from 0 on, -1 or null, got `{score}`")
    return {row["model"]: score}


def _compared(row: Row) -> dict[str, float | None]:
    models = (row["model_1"], row["model_2"])
    winners = (row["g1_winner"], row["g2_winner"])
    for winner in winners:
        if winner not in ("model_1", "model_2", "tie", "error"):
            raise ValueError(f"a winner is model_1, model_2, tie or error, got `{winner}`")
    if "error" in winners:
        return dict.fromkeys(models)
    won = winners[0] if winners[0] == winners[1] else "tie"
    first = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5}[won]
    return dict(zip(models, (first, 1.0 - first), strict=True))


def _by_model(judgments: Sequence[Judgment]) -> dict[str, list[Judgment]]:
    models: dict[str, list[Judgment]] = defaultdict(list)
    for row in judgments:
        models[row.model].append(row)
    return dict(sorted(models.items()))


def _parts(rows: Sequence[Judgment]) -> dict[str, list[Judgment]]:
    """The rows that each mean is over."""
    parts = {f"turn{turn}": [row for row in rows if row.turn == turn] for turn in TURNS}
    parts["average"] = list(rows)
    for category in sorted({row.category for row in rows if row.category is not None}):
        parts[category] = [row for row in rows if row.category == category]
    return parts


def _outcomes(rows: Sequence[Judgment]) -> dict[str, int]:
    counts = Counter(row.score for row in rows)
    return {"wins": counts[1.0], "losses": counts[0.0], "ties": counts[0.5]}


def _judged(rows: Sequence[Judgment]) -> Iterator[tuple[str, float]]:
    return ((row.question, row.score) for row in rows if row.score is not None)


def _mean(rows: Sequence[Judgment]) -> float | None:
    scores = [score for _, score in _judged(rows)]
    return math.fsum(scores) / len(scores) if scores else None


def _interval(rows: Sequence[Judgment], seed: int, resamples: int) -> tuple[float, float]:
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for question, score in _judged(rows):
        sums[question] += score  # type: ignore[assignment]
        counts[question] += 1
    drawn = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), size=resamples
    )  # (resamples, questions)
    totals: npt.NDArray[np.float64] = drawn @ np.array([sums[question] for question in counts])
    means = totals / (drawn @ np.array([*counts.values()]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
