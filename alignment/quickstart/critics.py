"""Programs that criticise and rate answers of the small world, in the place of judges."""

from __future__ import annotations

import re

from rapidfuzz.distance import Levenshtein

from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import CallError, Request
from alignment.quickstart import world

PRAISE = "FLAWLESS"
"""The word that `alignment build judgments` agrees on with its judge."""


def criticise(request: Request) -> str:
    """Answers the prompt of `alignment build judgments`: nothing wrong, or what would be right."""
    shown = _sections(request, "task", "answer")
    if world.is_right(shown["task"], shown["answer"]):
        return PRAISE
    return f"It should be {world.revision(shown['task'], shown['answer'])}"


def rate(request: Request) -> str:
    """Answers the prompt of `alignment build reward_groups`.

    A right answer gets 5, a wrong one 1 to 4: the more, the nearer it is to a right one.
    """
    shown = _sections(request, "task", "answer_1")
    answers = [text for name, text in shown.items() if re.fullmatch(r"answer_\d+", name)]
    ratings = [rating(shown["task"], answer) for answer in answers]
    blocks = (
        f"Answer {number}\nRating: {rated}\nRationale: {'right' if rated == 5 else 'wrong'}."
        for number, rated in enumerate(ratings, 1)
    )
    return "\n\n".join(blocks)


def rating(prompt: str, answer: str) -> int:
    """From 1 to 5."""
    if world.is_right(prompt, answer):
        return 5
    nearest = world.revision(prompt, answer.strip())
    return 1 + round(3 * Levenshtein.normalized_similarity(answer.strip(), nearest))


def _sections(request: Request, *names: str) -> dict[str, str]:
    found = sections(as_text(request.prompt))
    if missing := [name for name in names if name not in found]:
        raise CallError("failed", f"the prompt has no section {', '.join(missing)}")
    return found
