"""A small world of instructions whose answers a program can check.

A prompt names a task and two to four words: `sort: owl fox hen`. An answer may end with a full stop
or not; both are right, so a reviser has a style to keep. Prompts are held out by their *set* of
words: what is asked there was never asked in training, in no order and under no task.

`revise` and `judge` stand in for models. They answer the prompts that the builder and the evaluator
send to any model, so that both run as they do on real data.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from alignment.llm.prompts import as_messages, sections
from alignment.llm.protocol import CallError, Request

Split = Literal["train", "held_out"]

VERSION = "1"
"""Of everything below; runs made by different versions are told apart by it."""

WORDS = [
    *("ant", "box", "cup", "dog", "egg", "fan", "gem", "hat", "ink", "jar", "key", "log"),
    *("map", "net", "oak", "pen", "rug", "sun", "toy", "urn", "van", "web", "yak", "zoo"),
]
"""Of one length, and no two begin alike: a model this small learns to copy them in minutes."""
LENGTHS = range(2, 5)
"""Words in a prompt."""
HELD_OUT_SHARE = 0.2
FLAWED_SHARE = 0.35
"""Demonstrations with a wrong answer."""

TASKS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "sort": lambda words: " ".join(sorted(words)),
    "reverse": lambda words: " ".join(reversed(words)),
    "count": lambda words: str(len(words)),
    "last": lambda words: words[-1],
}


class Demonstration(NamedTuple):
    """A prompt with an answer to imitate.

    Attributes:
        prompt: The instruction.
        answer: The answer, which may be flawed.
    """

    prompt: str
    answer: str


def split_of(words: Sequence[str]) -> Split:
    """The side of the split that a set of words lies on; neither order nor a seed changes it."""
    digest = hashlib.blake2b(" ".join(sorted(words)).encode(), digest_size=4).digest()
    return "held_out" if int.from_bytes(digest) < HELD_OUT_SHARE * 2**32 else "train"


def prompts(split: Split, count: int, seed: int) -> list[str]:
    """Distinct prompts of one side of the split, in random order.

    Args:
        split: Which side.
        count: How many, thousands at most.
        seed: Of the draw.
    """
    drawn: dict[str, None] = {}
    draws = _draws(split, random.Random(f"{split} {seed}"))
    while len(drawn) < count:
        drawn[next(draws)] = None
    return list(drawn)


def demonstrations(
    count: int, seed: int, flawed_share: float = FLAWED_SHARE
) -> list[Demonstration]:
    """Training prompts with answers, of which a share are wrong on purpose.

    Short prompts are few and come up more than once, so that all lengths are shown alike.
    """
    rng = random.Random(f"demonstrations {seed}")
    flawed = [index < round(flawed_share * count) for index in range(count)]
    rng.shuffle(flawed)
    return [
        Demonstration(prompt, (flaw(prompt, rng) if wrong else _right(prompt)) + rng.choice(_ENDS))
        for wrong, prompt in zip(flawed, _draws("train", rng), strict=False)
    ]


def accepted(prompt: str) -> tuple[str, ...]:
    """Every right answer to a prompt.

    Raises:
        ValueError: The text is no prompt of this world.
    """
    return tuple(_right(prompt) + end for end in _ENDS)


def is_right(prompt: str, answer: str) -> bool:
    """Whether an answer is right, white space at its ends aside."""
    return answer.strip() in accepted(prompt)


def flaw(prompt: str, rng: random.Random) -> str:
    """A wrong answer of the kind that a careless writer gives.

    Raises:
        ValueError: The text is no prompt of this world.
    """
    task, words = _read(prompt)
    if task == "count":
        return str(len(words) + rng.choice((-1, 1)))
    if task == "last":
        return rng.choice(words[:-1])
    answer = TASKS[task](words).split()
    place = rng.randrange(len(answer) - 1)
    if rng.random() < 0.5:
        answer[place : place + 2] = reversed(answer[place : place + 2])
    else:
        del answer[place]
    return " ".join(answer)


def revision(prompt: str, answer: str) -> str:
    """The right answer nearest to `answer` in edit distance; among equals the one ending alike."""

    def cost(right: str) -> tuple[int, bool]:
        return Levenshtein.distance(answer, right), right[-1:] != answer[-1:]

    return min(accepted(prompt), key=cost)


def revise(request: Request) -> str:
    """Answers the prompt of `alignment build clair`: a program as reviser."""
    task, answer = _parts(request, "task", "answer")
    better = revision(task, answer)
    changes = Levenshtein.distance(answer, better)
    return f"## Reasoning\n{changes} characters differ.\n\n## Revised answer\n{better}"


def judge(request: Request) -> str:
    """Answers the prompt of `alignment eval winrate`: a program as judge."""
    task, first, second = _parts(request, "task", "answer_A", "answer_B")
    rights = is_right(task, first), is_right(task, second)
    verdict = {(True, False): "A", (False, True): "B"}.get(rights, "tie")
    return f"A is {_named(rights[0])}, B is {_named(rights[1])}.\nVerdict: {verdict}"


_ENDS = ("", ".")


def _draws(split: Split, rng: random.Random) -> Iterator[str]:
    while True:
        task = rng.choice(list(TASKS))
        words = rng.sample(WORDS, rng.choice(LENGTHS))
        if split_of(words) == split:
            yield f"{task}: {' '.join(words)}"


def _read(prompt: str) -> tuple[str, list[str]]:
    task, colon, words = prompt.partition(": ")
    if not colon or task not in TASKS or not words.split():
        raise ValueError(f"no prompt of this world, which look like `sort: owl fox`: {prompt!r}")
    return task, words.split()


def _right(prompt: str) -> str:
    task, words = _read(prompt)
    return TASKS[task](words)


def _parts(request: Request, *names: str) -> list[str]:
    """The named sections of a request's last message."""
    found = sections(str(as_messages(request.prompt)[-1]["content"]))
    if missing := [name for name in names if name not in found]:
        raise CallError("failed", f"the prompt has no section {', '.join(missing)}")
    return [found[name] for name in names]


def _named(right: bool) -> str:
    return "right" if right else "wrong"
