"""Answers that hardly depend on the prompt, which no judge's verdict on them can be trusted for.

One and the same answer to every prompt has reached 86 points of length-controlled win rate in
AlpacaEval's public table: it was written to the judge rather than to the prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment.llm.prompts import shorten

logger = logging.getLogger(__name__)

ALIKE = 0.8
"""Similarity from which two answers count as one: 1 less the edits over the longer one's length."""
SUSPICIOUS = 0.05
"""Share of prompts with one answer from which a warning is given."""
_MOST = 1000
_EDGE = 250


class Repetition(NamedTuple):
    """The answer that comes back most often.

    Attributes:
        share: Of the prompts that got it or one near it, in [0, 1].
        answer: Its beginning.
    """

    share: float
    answer: str


def repetition(answers: Sequence[str]) -> Repetition:
    """How often the commonest answer comes back, by its first and last characters.

    Args:
        answers: (n,) one for each prompt; of more than 1,000 as many are looked at, evenly spaced.

    Raises:
        ValueError: There are no answers.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    if not answers:
        raise ValueError("no answers to compare")
    picked = np.linspace(0, len(answers) - 1, min(len(answers), _MOST)).astype(int)
    texts = [" ".join(answers[index].split()) for index in picked]
    edges = [t if len(t) <= 2 * _EDGE else t[:_EDGE] + t[-_EDGE:] for t in texts]
    alike = process.cdist(
        edges, edges, scorer=Levenshtein.normalized_similarity, score_cutoff=ALIKE
    )
    counts = (alike >= ALIKE).sum(axis=1)
    most = int(counts.argmax())
    return Repetition(float(counts[most]) / len(texts), shorten(texts[most]))


def warn_of_repetition(name: str, answers: Sequence[str]) -> dict[str, Any]:
    """Warns of a model that gives near-identical answers to different prompts.

    Args:
        name: The model, or the file of its answers.
        answers: (n,) one for each prompt.

    Returns:
        What a report says: `repeated_share` and, from `SUSPICIOUS` on, `repeated_answer`.
    """
    found = repetition(answers)
    if len(answers) < 3 or found.share < max(SUSPICIOUS, 2 / len(answers) + 1e-9):
        return {"repeated_share": found.share}
    logger.warning(
        "%s gives near-identical answers to %.0f%% of the prompts, such as `%s`: verdicts on them "
        "say more about the judge than about the model",
        *(name, 100 * found.share, found.answer),
    )
    return {"repeated_share": found.share, "repeated_answer": found.answer}
