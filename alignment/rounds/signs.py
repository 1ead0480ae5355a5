"""Signs that rounds please the judge rather than the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from eval.answers import repetition

LENGTH_DRIFT = 1.25
"""Mean length of answers over that of the start's, or its inverse, from which that is told."""
REPEATED_RISE = 0.05
"""Rise of a share of repeated answers or pieces from which that is told."""
DISAGREEMENT_RISE = 0.1
"""Rise of the share of comparisons on which verdicts disagree from which that is told."""
NGRAM = 4
"""Words of a piece that counts as repeated where it stands twice in an answer."""


class Signs(NamedTuple):
    """What the answers of a round look like.

    Attributes:
        length: Mean length of an answer, characters.
        same_answer: Share of prompts that got the commonest answer or one near it.
        repeated_pieces: Share of the pieces of answers that stood there before.
        order_disagreement: Share of comparisons whose verdicts change with the order of the
            answers; None where no comparison had both.
        audit_disagreement: Share of prompts on which a second judge names another winner; None
            without one.
    """

    length: float
    same_answer: float
    repeated_pieces: float
    order_disagreement: float | None = None
    audit_disagreement: float | None = None


def signs_of(
    answers: Sequence[str],
    judged: Mapping[str, Any] | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
    audited: Sequence[Mapping[str, Any]] | None = None,
) -> Signs:
    """The signs in the answers of a round.

    Args:
        answers: (n,) to the held-out prompts.
        judged: `results.json` of their comparison with the start's.
        verdicts: The rows of that comparison.
        audited: Those of the second judge.

    Raises:
        ValueError: There are no answers.
    """
    consistency = None if judged is None else judged.get("position_consistency")
    return Signs(
        length=fmean(map(len, answers)),
        same_answer=repetition(answers).share,
        repeated_pieces=repeated_pieces(answers),
        order_disagreement=None if consistency is None else 1 - consistency,
        audit_disagreement=None if audited is None else _disagreement(verdicts, audited),
    )


def repeated_pieces(answers: Sequence[str]) -> float:
    """The share of pieces of `NGRAM` words that stood in the same answer before, over all."""
    pieces = repeats = 0
    for answer in answers:
        words = answer.split()
        counts = Counter(tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
        pieces += counts.total()
        repeats += counts.total() - len(counts)
    return repeats / pieces if pieces else 0.0


def warnings_of(now: Signs, start: Signs, first: Signs) -> list[str]:
    """What has changed so much that the score may not mean what it says.

    Args:
        now: Of the round.
        start: Of the starting model.
        first: Of the first round, the first whose answers were judged.
    """
    told = []
    ratio = now.length / max(start.length, 1e-9)
    if not 1 / LENGTH_DRIFT <= ratio <= LENGTH_DRIFT:
        told.append(f"answers are {ratio:.2f} times as long as at the start")
    for name, words in (
        ("same_answer", "of the prompts get one answer"),
        ("repeated_pieces", "of the pieces of answers are repeated"),
    ):
        old, new = getattr(start, name), getattr(now, name)
        if new >= old + REPEATED_RISE:
            told.append(f"{new:.0%} {words}, {old:.0%} at the start")
    for name, words in (
        ("order_disagreement", "verdicts change with the order of the answers in"),
        ("audit_disagreement", "the second judge names another winner in"),
    ):
        old, new = getattr(first, name), getattr(now, name)
        if None not in (old, new) and new >= old + DISAGREEMENT_RISE:
            told.append(f"{words} {new:.0%} of cases, {old:.0%} in the first round")
    return told


def _disagreement(
    verdicts: Sequence[Mapping[str, Any]], audited: Sequence[Mapping[str, Any]]
) -> float | None:
    """Over prompts that both have judged: the share on which they name different winners."""
    second = {row["prompt"]: row["score"] for row in audited}
    both = [
        (row["score"], second[row["prompt"]])
        for row in verdicts
        if row["score"] is not None and second.get(row["prompt"]) is not None
    ]
    differ = [(a > 0.5, a < 0.5) != (b > 0.5, b < 0.5) for a, b in both]
    return fmean(differ) if differ else None
