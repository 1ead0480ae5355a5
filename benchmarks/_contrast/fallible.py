"""Programs in the place of models that are right as often as they are told to be.

They err at random under the seed of each request, so a run repeats itself and two answers to one
prompt differ.
"""

from __future__ import annotations

import random
import re

from alignment.llm.prompts import as_text
from alignment.llm.protocol import Prompt, Request
from alignment.quickstart import world

_TASK = re.compile(rf"\b(?:{'|'.join(world.TASKS)}): \w+(?: \w+)*")


def draws(request: Request) -> random.Random:
    """The random numbers of a request."""
    return random.Random(request.draw())


def task_in(prompt: Prompt) -> str:
    """The last prompt of the world that stands in a prompt, whatever is around it.

    Raises:
        ValueError: There is none.
    """
    found = _TASK.findall(as_text(prompt))
    if not found:
        raise ValueError(f"no task of the world in {as_text(prompt)!r}")
    return str(found[-1])


def answer(task: str, *, right: bool, rng: random.Random, unlike: str | None = None) -> str:
    """A right or a wrong answer to a task, with or without a full stop.

    Args:
        task: A prompt of the world.
        right: Which.
        rng: Draws it.
        unlike: A text that it must not be.
    """
    while True:
        text = world.flaw(task, rng) if not right else world.accepted(task)[0]
        text += rng.choice(("", "."))
        if text != unlike:
            return text


def answers(count: int, seed: int, share_right: float, name: str) -> list[dict[str, str]]:
    """Answers of a model that is right in a share of cases, one to each of some prompts.

    Args:
        count: How many.
        seed: Of the draw.
        share_right: How many of them are right; exactly this share.
        name: The model's.
    """
    rng = random.Random(f"{name} {seed}")
    right = [index < round(share_right * count) for index in range(count)]
    rng.shuffle(right)
    return [
        {"prompt": task, "response": answer(task, right=is_right, rng=rng), "model": name}
        for task, is_right in zip(world.prompts("train", count, seed), right, strict=True)
    ]


def preference(task: str, first: str, second: str, skill: float, rng: random.Random) -> str:
    """`A`, `B` or `tie`: which of two answers is right, or with chance `1 - skill` the reverse.

    Args:
        task: A prompt of the world.
        first: An answer.
        second: Another.
        skill: How often the verdict is true.
        rng: Draws the errors; two answers that are alike right or wrong always tie.
    """
    rights = world.is_right(task, first), world.is_right(task, second)
    if rights[0] == rights[1]:
        return "tie"
    return "A" if rights[0] == (rng.random() < skill) else "B"
