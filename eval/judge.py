"""Judges: a prompt file, a verdict type, a parser of verdicts, and both orders of two answers.

A verdict that cannot be read is counted and never scored.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from alignment.llm.engine import LLM
from alignment.llm.prompts import Template
from alignment.llm.protocol import CallError, Reply, Sampling

PROMPTS = Path(__file__).parent / "prompts"
PAIRWISE_FIELDS = frozenset({"prompt", "first", "second"})

V = TypeVar("V")

_VERDICT = re.compile(r"\W*(?:verdict\W+)?(a|b|tie)\W*", re.IGNORECASE)
_PREFERENCES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class VerdictError(Exception):
    """A verdict that cannot be read.

    Attributes:
        fault: `unparseable`, or the outcome of a call that gave no answer.
        text: What the judge said.
    """

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(f"{fault}: {text[:200]!r}")
        self.fault = fault
        self.text = text


@dataclass(frozen=True)
class Judge(Generic[V]):
    """A model that is asked for verdicts.

    Attributes:
        llm: The model.
        template: The prompt file.
        read: The verdict in a reply; raises `ValueError` where there is none.
        sampling: How verdicts are drawn; greedy by default.
    """

    llm: LLM
    template: Template
    read: Callable[[Reply], V]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))

    async def ask(self, **fields: str) -> tuple[V, str]:
        """A verdict with the judge's words.

        Args:
            **fields: What the prompt file shows.

        Raises:
            VerdictError: The judge gave no verdict that can be read.
        """
        try:
            reply = await self.llm.chat(self.template.user_message(**fields), self.sampling)
        except CallError as error:
            raise VerdictError(error.outcome, str(error)) from None
        try:
            return self.read(reply), reply.text
        except ValueError:
            raise VerdictError("unparseable", reply.text) from None

    def identity(self) -> dict[str, Any]:
        """What a report has to say about the judge for its numbers to mean something."""
        return {
            "model": self.llm.model,
            "provider": self.llm.backend.provider,
            "fingerprint": self.llm.backend.fingerprint,
            "prompt": self.template.path.name,
            "prompt_digest": self.template.digest,
            "sampling": self.sampling.settings(),
        }


class Vote(NamedTuple):
    """One verdict on two answers.

    Attributes:
        first: Which answer was shown first, `answer` or `baseline`.
        preference: For the answer over the baseline: 1, 0.5 or 0; None where it cannot be read.
        fault: Why it cannot be read.
        text: The judge's words.
    """

    first: Literal["answer", "baseline"]
    preference: float | None
    fault: str | None
    text: str


class Comparison(NamedTuple):
    """An answer against a baseline's answer.

    Attributes:
        score: Mean preference over both orders, in [0, 1]; None where a verdict cannot be read.
        votes: The verdicts, answer first and baseline first; none for identical answers, which
            tie without being judged.
    """

    score: float | None
    votes: tuple[Vote, ...]

    @property
    def consistent(self) -> bool | None:
        """Whether both orders prefer the same; None where there are not two verdicts."""
        preferences = [vote.preference for vote in self.votes]
        return None if len(preferences) < 2 or None in preferences else len({*preferences}) == 1

    def as_row(self) -> dict[str, Any]:
        """Columns of `verdicts.jsonl`, from which every number can be recomputed."""
        votes = [vote._asdict() for vote in self.votes]
        return {"score": self.score, "consistent": self.consistent, "votes": votes}


def pairwise_judge(
    llm: LLM, prompt_file: str | Path | None = None, sampling: Sampling | None = None
) -> Judge[float]:
    """A judge that prefers one of two answers.

    Args:
        llm: The model.
        prompt_file: A template with the fields `prompt`, `first`, `second` and `fence`, which asks
            for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`.
        sampling: How verdicts are drawn; greedy by default.

    Raises:
        UserError: The prompt file cannot be used.
    """
    template = Template(prompt_file or PROMPTS / "pairwise.txt", PAIRWISE_FIELDS)
    return Judge(llm, template, read_preference, sampling or Sampling(temperature=0.0))


def read_preference(reply: Reply) -> float:
    """The preference for the first answer, 1, 0.5 or 0, from the last line of a reply.

    Only a line that holds a verdict and nothing else is one: what is said on the way to it, or
    quoted from an answer, is not.

    Raises:
        ValueError: The last line is no verdict.
    """
    lines = reply.text.strip().splitlines()
    match = _VERDICT.fullmatch(lines[-1]) if lines else None
    if match is None:
        raise ValueError("the last line is no verdict")
    return _PREFERENCES[match[1].lower()]


async def compare(judge: Judge[float], prompt: str, answer: str, baseline: str) -> Comparison:
    """Judges two answers in both orders."""
    if answer.split() == baseline.split():
        return Comparison(0.5, ())

    async def vote(first: Literal["answer", "baseline"]) -> Vote:
        shown = (answer, baseline) if first == "answer" else (baseline, answer)
        try:
            preference, text = await judge.ask(prompt=prompt, first=shown[0], second=shown[1])
        except VerdictError as error:
            return Vote(first, None, error.fault, error.text)
        return Vote(first, preference if first == "answer" else 1.0 - preference, None, text)

    votes = await asyncio.gather(vote("answer"), vote("baseline"))
    preferences = [vote.preference for vote in votes if vote.preference is not None]
    score = sum(preferences) / 2 if len(preferences) == 2 else None
    return Comparison(score, tuple(votes))
