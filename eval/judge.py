"""Judges: a prompt file, a verdict type, a parser of verdicts, and both orders of two answers.

`eval.judge_files` makes a judge of one YAML. A verdict that cannot be read is counted and never
scored. What is judged is data: it stands between marks that it cannot contain, and what a chat
template or a parser would take for its own is broken up in it.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template
from alignment.llm.protocol import CallError, Message, Reply, Sampling
from eval.verdicts import Preference, read_letter

PROMPTS = Path(__file__).parent / "prompts"
PAIRWISE_FIELDS = frozenset({"prompt", "first", "second"})
RATING_FIELDS = frozenset({"prompt", "answers"})

V = TypeVar("V")
Side = Literal["answer", "baseline"]
ORDERS: tuple[Side, ...] = ("answer", "baseline")

_CONTROL = re.compile(
    r"<(?=\||/?(?:s|bos|eos|pad)>|(?:start|end)_of_turn>|<?/?SYS>)"
    r"|\[(?=/?INST\]|\[[\w.]+\]\])"
)
_BREAK = "\u200b"


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


def inert(text: str) -> str:
    """A text in which nothing is left that a chat template or a parser takes for its own.

    A zero-width space breaks up control tokens (`<|im_end|>`, `</s>`, `[INST]`) and rating markers
    (`[[10]]`), so that neither the text nor a judge that quotes it speaks in another's name.
    """
    return _CONTROL.sub(rf"\g<0>{_BREAK}", text)


@dataclass(frozen=True)
class Judge(Generic[V]):
    """A model that is asked for verdicts.

    Attributes:
        llm: The model.
        template: The prompt file.
        read: The verdict in a reply; raises `ValueError` where there is none.
        sampling: How verdicts are drawn; greedy by default.
        system: What the system's message says; None where there is none.
        again: How often a reply that cannot be read is asked for anew.
        keep_truncated: Whether a reply that was cut off is read, as one of a single token must be.
        kinds: Types of a verdict, to which a parser of one's own is held.
    """

    llm: LLM
    template: Template
    read: Callable[[Reply], V]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    system: str | None = None
    again: int = 0
    keep_truncated: bool = False
    kinds: tuple[type, ...] = (object,)

    symmetric = False
    """Whether the order of two answers cannot matter."""

    async def ask(self, **fields: str | Mapping[str, str]) -> tuple[V, Reply]:
        """A verdict with the reply that it was read in.

        Args:
            **fields: What the prompt file shows; a mapping becomes one section for each entry.

        Raises:
            VerdictError: The judge gave no verdict that can be read.
            UserError: The judge cannot be asked, or cannot give the verdicts that it should; or
                its parser returns what is no verdict of its type.
        """
        messages = self._messages(fields)
        for sample in range(self.again + 1):
            try:
                reply = await self.llm.chat(
                    messages, self.sampling, sample=sample, keep_truncated=self.keep_truncated
                )
            except CallError as error:
                raise VerdictError(error.outcome, str(error)) from None
            try:
                verdict = self.read(reply)
            except ValueError:
                continue
            if not isinstance(verdict, self.kinds):
                raise UserError(
                    f"the parser `{self._reader}` returned a {type(verdict).__name__}, where the "
                    f"judge's `verdict` asks for {' or '.join(k.__name__ for k in self.kinds)}; "
                    "mend one of the two"
                )
            return verdict, reply
        raise VerdictError("unparseable", reply.text)

    async def prefer(self: Judge[Preference], prompt: str, first: str, second: str) -> Verdict:
        """Which of two answers is preferred; raises as `ask` does."""
        return Verdict.of(*await self.ask(prompt=prompt, first=first, second=second))

    def identity(self) -> dict[str, Any]:
        """What a report has to say about the judge for its numbers to mean something."""
        return {
            "model": self.llm.model,
            "provider": self.llm.backend.provider,
            "fingerprint": self.llm.backend.fingerprint,
            "prompt": self.template.path.name,
            "prompt_digest": self.template.digest,
            "system": self.system,
            "verdict": self._reader,
            "sampling": self.sampling.settings(),
        }

    @property
    def _reader(self) -> str:
        """What the function that reads a verdict is called."""
        name: str | None = getattr(self.read, "__name__", None)
        return name or repr(self.read)

    def _messages(self, fields: Mapping[str, str | Mapping[str, str]]) -> list[Message]:
        shown = {
            name: inert(value)
            if isinstance(value, str)
            else {key: inert(text) for key, text in value.items()}
            for name, value in fields.items()
        }
        asked = self.template.user_message(**shown)
        if self.system is None:
            return asked
        return [{"role": "system", "content": self.system}, *asked]


class Verdict(NamedTuple):
    """A preference with what the judge said.

    Attributes:
        preference: For the answer shown first.
        text: The judge's words.
        logprobs: The log-probs that a weighted preference was read from, by token, nats.
    """

    preference: Preference
    text: str
    logprobs: Mapping[str, float] | None = None

    @classmethod
    def of(cls, preference: Preference, reply: Reply) -> Verdict:
        """What `Judge.ask` returned for two answers."""
        positions = reply.top_logprobs if preference.weighted else None
        return cls(preference, reply.text, positions[0] if positions else None)


@dataclass(frozen=True)
class RewardJudge:
    """A reward model in the place of a judge: each answer has a reward of its own.

    The preference is sigmoid(reward of the first - reward of the second), the Bradley-Terry model
    that such models are trained by.

    Attributes:
        llm: A model that offers `reward`.
    """

    llm: LLM

    symmetric = True

    async def prefer(self, prompt: str, first: str, second: str) -> Verdict:
        """Which of two answers has the higher reward.

        Raises:
            VerdictError: An answer has no reward, for instance because it is too long.
        """
        try:
            one, two = await asyncio.gather(
                *(self.llm.reward(_conversation(prompt, answer)) for answer in (first, second))
            )
        except CallError as error:
            raise VerdictError(error.outcome, str(error)) from None
        return Verdict(Preference(_sigmoid(one - two), weighted=True), f"{one!r} {two!r}")

    def identity(self) -> dict[str, Any]:
        """As for `Judge`; there is no prompt."""
        return {
            "model": self.llm.model,
            "provider": self.llm.backend.provider,
            "fingerprint": self.llm.backend.fingerprint,
            "verdict": "reward",
        }


class PairJudge(Protocol):
    """What can say which of two answers is better: a `Judge` of preferences, a `RewardJudge`."""

    @property
    def llm(self) -> LLM:
        """The model."""

    @property
    def symmetric(self) -> bool:
        """Whether the order of two answers cannot matter."""

    async def prefer(self, prompt: str, first: str, second: str) -> Verdict:
        """The preference for the first answer; raises `VerdictError` where there is none."""

    def identity(self) -> dict[str, Any]:
        """What a report has to say about the judge."""


class Vote(NamedTuple):
    """One verdict on two answers.

    Attributes:
        first: Which answer was shown first, `answer` or `baseline`.
        preference: For the answer over the baseline, in [0, 1]; None where it cannot be read.
        fault: Why it cannot be read.
        text: The judge's words.
        weighted: Whether the preference is a probability rather than a word.
        logprobs: The log-probs that it was read from, by token, nats.
    """

    first: Side
    preference: float | None
    fault: str | None
    text: str
    weighted: bool = False
    logprobs: Mapping[str, float] | None = None


class Comparison(NamedTuple):
    """An answer against a baseline's answer.

    Attributes:
        score: Mean preference over the orders, in [0, 1]; None where a verdict cannot be read.
        votes: The verdicts, answer first and baseline first; none for identical answers, which
            tie without being judged.
    """

    score: float | None
    votes: tuple[Vote, ...]

    @property
    def consistent(self) -> bool | None:
        """Whether both orders prefer the same; None where there are not two verdicts."""
        preferences = [vote.preference for vote in self.votes if vote.preference is not None]
        return len({*map(_side, preferences)}) == 1 if len(preferences) == 2 else None

    def as_row(self) -> dict[str, Any]:
        """Columns of `verdicts.jsonl`, from which every number can be recomputed."""
        votes = [vote._asdict() for vote in self.votes]
        return {"score": self.score, "consistent": self.consistent, "votes": votes}


async def compare(
    judge: PairJudge, prompt: str, answer: str, baseline: str, first: Side | None = None
) -> Comparison:
    """Judges two answers.

    Args:
        judge: Who prefers.
        prompt: What was asked.
        answer: The answer whose preference is told.
        baseline: The other one.
        first: Which is shown first; both orders where it is None, unless order cannot matter.
    """
    if answer.split() == baseline.split():
        return Comparison(0.5, ())

    async def prefer(first: Side) -> Verdict:
        shown = (answer, baseline) if first == "answer" else (baseline, answer)
        return await judge.prefer(prompt, *shown)

    both = ORDERS[:1] if judge.symmetric else ORDERS
    return await compare_in(both if first is None else (first,), prefer)


async def compare_in(
    orders: Sequence[Side], prefer: Callable[[Side], Awaitable[Verdict]]
) -> Comparison:
    """Gathers the verdicts of several orders.

    Args:
        orders: Which answer is shown first, for each verdict.
        prefer: Asks for the verdict of an order, or raises `VerdictError`.
    """

    async def vote(first: Side) -> Vote:
        try:
            verdict = await prefer(first)
        except VerdictError as error:
            return Vote(first, None, error.fault, error.text)
        value, weighted = verdict.preference
        value = value if first == "answer" else 1.0 - value
        return Vote(first, value, None, verdict.text, weighted, verdict.logprobs)

    votes = await asyncio.gather(*map(vote, orders))
    preferences = [vote.preference for vote in votes if vote.preference is not None]
    score = sum(preferences) / len(votes) if len(preferences) == len(votes) else None
    return Comparison(score, tuple(votes))


async def rate(
    judge: Judge[tuple[float, ...]], prompt: str, answers: Sequence[str]
) -> tuple[float, ...]:
    """Ratings of several answers from one call, in their order.

    Args:
        judge: A judge of the verdict type `ratings`, or with a parser of one's own.
        prompt: What was asked.
        answers: (K,) what is rated; the prompt file's field `answers` shows them as sections
            `answer_1` to `answer_K`.

    Returns:
        (K,) the ratings.

    Raises:
        VerdictError: There are no ratings that can be read, or not one for each answer.
    """
    shown = {f"answer_{number}": answer for number, answer in enumerate(answers, 1)}
    ratings, reply = await judge.ask(prompt=prompt, answers=shown)
    if len(ratings) != len(answers):
        raise VerdictError("unparseable", reply.text)
    return ratings


def pairwise_judge(
    llm: LLM, prompt_file: str | Path | None = None, sampling: Sampling | None = None
) -> Judge[Preference]:
    """A judge that prefers one of two answers by a letter.

    Args:
        llm: The model.
        prompt_file: A template with the fields `prompt`, `first`, `second` and `fence`, which asks
            for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`.
        sampling: How verdicts are drawn; greedy by default.

    Raises:
        UserError: The prompt file cannot be used.
    """
    template = Template(prompt_file or PROMPTS / "pairwise.txt", PAIRWISE_FIELDS)
    return Judge(llm, template, read_letter, sampling or Sampling(temperature=0.0))


def _conversation(prompt: str, answer: str) -> list[Message]:
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": inert(answer)},
    ]


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)
