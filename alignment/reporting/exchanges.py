"""Answers side by side with what the judge said, and win rates by how much longer an answer is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignment.pages.blocks import Answer, Exchange, Interval, Intervals
from alignment.reporting.figures import SHARE, cut, interval
from eval.stats import win_rate

Row = Mapping[str, Any]

_RESAMPLES = 2_000
_LENGTHS = (
    ("less than half as long", 0.0, 0.5),
    ("half as long to 10% shorter", 0.5, 1 / 1.1),
    ("as long, within 10%", 1 / 1.1, 1.1),
    ("10% longer to twice as long", 1.1, 2.0),
    ("more than twice as long", 2.0, float("inf")),
)
_OUTCOMES = ("win", "loss", "tie", "unjudged")


def outcome(score: float | None) -> str:
    """What a score in [0, 1] means for the answer it is of."""
    if score is None:
        return "unjudged"
    return "tie" if score == 0.5 else "win" if score > 0.5 else "loss"


def some_of_each(rows: Sequence[Row], examples: int, seed: int) -> list[Row]:
    """Rows to show, drawn under a seed: wins, losses, ties and unjudged in turn.

    Args:
        rows: With a `score` each.
        examples: How many.
        seed: Of the draw.
    """
    by_outcome: dict[str, list[Row]] = {name: [] for name in _OUTCOMES}
    for row in rows:
        by_outcome[outcome(row["score"])].append(row)
    rng = random.Random(seed)
    for kind in by_outcome.values():
        rng.shuffle(kind)
        # What the judge was asked about tells more than two answers of the same words.
        kind.sort(key=lambda row: not row.get("votes", True))
    chosen: list[Row] = []
    while len(chosen) < examples and any(by_outcome.values()):
        chosen += [kind.pop(0) for kind in by_outcome.values() if kind]
    return sorted(chosen[:examples], key=lambda row: _OUTCOMES.index(outcome(row["score"])))


def compared(row: Row, names: tuple[str, str]) -> Exchange:
    """A comparison of two answers.

    Args:
        row: `prompt`, `answer`, `baseline`, `score`, and `votes` where they are known.
        names: Of the two models.
    """
    sides = zip(names, (row["answer"], row["baseline"]), strict=True)
    votes = row.get("votes")
    remarks = [_remark(vote, names) for vote in votes or ()]
    if votes == []:
        remarks = [("judge", "was not asked: both answers are the same words")]
    return Exchange(
        title=" ".join(str(row["prompt"]).split())[:200],
        prompt=cut(str(row["prompt"])),
        answers=[
            Answer(name, "plain", [(cut(text), False)], f"{len(text):,} characters")
            for name, text in sides
        ],
        remarks=remarks,
        outcome=_told(row["score"], names[0]),
    )


def by_length(rows: Iterable[Row]) -> Intervals | None:
    """Win rates of answers that are shorter, as long and longer than those they are compared with.

    Returns:
        None where nothing was judged, or no answer has words.
    """
    ratios = [
        (len(row["answer"]) / len(row["baseline"]), row["score"])
        for row in rows
        if row["score"] is not None and row["baseline"]
    ]
    found = [_bin(name, [s for r, s in ratios if low <= r < high]) for name, low, high in _LENGTHS]
    there = [row for row in found if row is not None]
    title = "Length against win rate: the answer is"
    return Intervals(title, there, SHARE.told) if there else None


def _bin(name: str, scores: list[float | None]) -> Interval | None:
    if not scores:
        return None
    made = win_rate(scores, 0, _RESAMPLES)
    note = f"{len(scores)} comparisons"
    return interval(name, made.win_rate, made.win_rate_ci, SHARE, note)


def _told(score: float | None, name: str) -> str:
    result = outcome(score)
    return result if score is None or result == "tie" else f"{result} of {name}"


def _remark(vote: Mapping[str, Any], names: tuple[str, str]) -> tuple[str, str]:
    first = names[0] if vote["first"] == "answer" else names[1]
    preferred = vote["preference"]
    if vote["fault"]:
        told = f"no verdict: {vote['fault']}"
    elif preferred == 0.5:
        told = "prefers neither"
    else:
        told = f"prefers {names[0] if preferred > 0.5 else names[1]}"
        told += f" by {max(preferred, 1 - preferred):.2f}" if vote.get("weighted") else ""
    return f"judge, {first} shown first: {told}", cut(str(vote["text"] or "(no words)"))


def rated(rows: Iterable[Row], answers: Mapping[tuple[str, str], Row]) -> Iterator[Exchange]:
    """Turns of a conversation with the rating or comparison of each.

    Args:
        rows: Verdicts of MT-Bench.
        answers: Model and question -> the row of its answers.
    """
    for row in rows:
        turn, question = int(row["turn"]), str(row["question_id"])
        names = [name for name in (row["model"], row.get("baseline")) if name]
        said = [(name, _turn(answers.get((name, question)), turn)) for name in names]
        remarks = [_remark(vote, (names[0], names[-1])) for vote in row.get("votes") or ()]
        if row.get("judgment") is not None:
            remarks.append(("judge", cut(str(row["judgment"]))))
        if row.get("fault"):
            remarks.append(("no verdict", str(row["fault"])))
        score = "unjudged" if row["score"] is None else f"{row['score']:g}"
        yield Exchange(
            title=f"question {question}, turn {turn}, {row.get('category') or 'no category'}",
            prompt="",
            answers=[Answer(name, "plain", [(cut(text), False)]) for name, text in said],
            remarks=remarks,
            outcome=f"{row['model']}: {score}",
        )


def _turn(row: Row | None, turn: int) -> str:
    """What a model said in a turn, in the layouts that a run keeps."""
    if row is None:
        return "(not in the folder)"
    turns = row.get("turns") or row["choices"][0]["turns"]
    return str(turns[turn - 1]) if turn <= len(turns) else "(no answer)"
