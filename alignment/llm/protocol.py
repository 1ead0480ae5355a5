"""What the engine and its backends say to each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from alignment.cli import UserError

Message: TypeAlias = dict[str, Any]
Prompt: TypeAlias = "str | Sequence[Message]"
"""Plain text, or chat messages with `role` and `content`."""

Verb = Literal["chat", "complete", "score", "reward"]
Outcome = Literal["answered", "refused", "truncated", "unparseable", "rate_limited", "failed"]

GO_ON = "run the same command with `--resume` to go on"
"""What a job says that ended early."""
GO_ON_BY_ITSELF = "run the same command to go on"
"""What a run of several jobs says, which finds by itself what is done."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=dict)
_OUTCOMES: Mapping[str, Outcome] = {
    "length": "truncated",
    "max_tokens": "truncated",
    "content_filter": "refused",
    "refusal": "refused",
    "abort": "failed",
    "error": "failed",
}


class CallError(Exception):
    """A call that gave no usable answer.

    Attributes:
        outcome: Why, one of `Outcome` except `answered`.
        retry: Whether the same call may succeed later.
        retry_after: Seconds the server asked to wait, None where it did not.
        unreachable: Whether nothing was met that speaks the protocol; an error of the user's
            unless it was met before.
        prompt_tokens: Tokens read all the same, None where the server does not say.
        completion_tokens: Tokens written all the same, None where the server does not say.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def __init__(
        self,
        outcome: Outcome,
        message: str,
        *,
        retry: bool = False,
        retry_after: float | None = None,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry = retry
        self.retry_after = retry_after
        self.unreachable = unreachable


class Stopped(UserError):
    """A call that was not sent because the job is to end early; the job's one line where it is.

    Attributes:
        why: What ended the job.
        remedy: How to go on.
    """

    def __init__(self, why: str, remedy: str, *, status: int = 2) -> None:
        super().__init__(f"{why}; {remedy}")
        self.why = why
        self.remedy = remedy
        self.status = status


@contextmanager
def going_on_by_itself() -> Iterator[None]:
    """Has a run of several jobs say how the run goes on where one of them ends early.

    Raises:
        Stopped: A job was stopped, or the run was interrupted.
    """
    try:
        yield
    except Stopped as stop:
        raise Stopped(stop.why, GO_ON_BY_ITSELF, status=stop.status) from None
    except (KeyboardInterrupt, UserError) as error:
        if isinstance(error, UserError) and error.status != 130:
            raise
        raise Stopped("interrupted", GO_ON_BY_ITSELF, status=130) from None


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. What is None is left to the server.

    Attributes:
        temperature: 0 is greedy.
        top_p: Probability mass that is sampled from.
        top_k: Number of tokens that are sampled from; 0 and -1 stand for all.
        max_tokens: Longest answer, tokens.
        seed: Mixed with the prompt and the sample index, so that one seed does not make the
            answers to different prompts alike.
        stop: Texts that end the answer and are not part of it.
        top_logprobs: How many log-probs to return for each position of the answer.
        extra: Further fields of the request, as the server names them.

    Raises:
        UserError: A value is out of range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("temperature", 0), ("top_k", -1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"`{name}` is {value}; it must be at least {least}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"`top_p` is {self.top_p}; it must be above 0 and at most 1")

    def settings(self) -> dict[str, Any]:
        """What is set, by name: part of a call's key, and worth recording beside the answer."""
        return {name: value for name, value in vars(self).items() if value not in (None, (), {})}


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        verb: What is asked for.
        prompt: Messages for `chat` and, with the answer as the last, for `reward`; text for
            `complete`; for `score` either.
        continuations: The texts to score after the prompt, for `score` alone.
        sampling: How the answer is drawn.
        sample: Which of several answers to the same prompt this is.
    """

    verb: Verb
    prompt: Prompt
    continuations: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    sample: int = 0

    def canonical(self) -> bytes:
        """Everything about this call that changes its answer, as bytes."""
        parts = (self.verb, self.prompt, self.continuations, self.sampling.settings(), self.sample)
        return _ENCODER.encode(parts).encode()

    def draw(self) -> int:
        """The seed of this very call: 31 bits of a hash of all that sets it apart."""
        return int.from_bytes(hashlib.blake2b(self.canonical(), digest_size=4).digest()) >> 1


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The answer, or the words of a refusal; empty for `score`, a number for `reward`.
        finish_reason: Why the answer ended, as the server says it: `stop`, `length`, ...
        prompt_tokens: Tokens read, None where the server does not say.
        completion_tokens: Tokens written, None where the server does not say.
        logps: For `score`: for each continuation the log-prob of each of its tokens, nats. Their
            sum is the log-prob of the continuation.
        top_logprobs: For each position of the answer, token -> log-prob in nats; None where none
            were asked for, or where the server ignored the wish.
    """

    text: str = ""
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logps: tuple[tuple[float, ...], ...] | None = None
    top_logprobs: tuple[Mapping[str, float], ...] | None = None

    @property
    def outcome(self) -> Outcome:
        """`answered`, `refused`, `truncated`, or `failed` where the server gave up half way."""
        return _OUTCOMES.get(self.finish_reason, "answered")


class Backend(Protocol):
    """One way to reach a model.

    Attributes:
        provider: Who runs the model: a host, or the name of a library.
        model: Name of the model, as the provider knows it.
        fingerprint: What tells two models of one name apart, such as a checksum of the weights.
        verbs: What it offers.
    """

    provider: str
    model: str
    fingerprint: str
    verbs: frozenset[Verb]

    async def ask(self, request: Request) -> Reply:
        """Makes one call, without retrying.

        Raises:
            CallError: The call gave no usable answer.
            UserError: No call can succeed before the user mends something.
        """
        ...

    async def close(self) -> None:
        """Frees connections or memory."""
        ...
