"""What a job would ask and cost, without asking."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from alignment.cli import say
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.pacing import BYTES_PER_TOKEN, UNBOUNDED_ANSWER, Limits, estimate
from alignment.llm.protocol import Backend, CallError, Reply, Request, Verb
from alignment.llm.rows import Named, Reject, Row, members_of


class Unasked:
    """A model that is not even loaded: the names under which the ledger knows it.

    Args:
        provider: As for every backend, like the others.
        model: Name of the model.
        fingerprint: What tells two models of one name apart.
    """

    verbs: frozenset[Verb] = frozenset({"chat", "complete", "score", "reward"})

    def __init__(self, provider: str, model: str, fingerprint: str) -> None:
        self.provider = provider
        self.model = model
        self.fingerprint = fingerprint

    async def ask(self, request: Request) -> Reply:
        """Nothing is asked."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing to free."""


class DryRun(LLM):
    """Answers from the ledger, and counts every other call instead of making it.

    Args:
        backend: Where calls would go.
        ledger: As for `LLM`; nothing is written to it.
        limits: As for `LLM`; only the price counts.
        tokens_of: Counts the tokens of a prompt; they are estimated where it is None.
    """

    def __init__(
        self,
        backend: Backend,
        ledger: Ledger,
        limits: Limits,
        tokens_of: Callable[[Request], int] | None = None,
    ) -> None:
        super().__init__(backend, ledger, limits)
        self._counted: set[bytes] = set()
        self._prompt_tokens = self._completion_tokens = self._unbounded = 0
        self._tokens_of = tokens_of

    async def ask(self, request: Request, *, keep_truncated: bool = False) -> Reply:
        """A reply from the ledger.

        Raises:
            CallError: The call would have to be made.
        """
        key = self.key(request)
        if self.ledger.get(key) is not None:
            return await super().ask(request, keep_truncated=keep_truncated)
        if key not in self._counted:
            self._counted.add(key)
            self._count(request)
        raise CallError("failed", "not asked in a dry run")

    def __str__(self) -> str:
        """What would be asked, in one line."""
        if self._tokens_of is None:
            how = f"estimated, {BYTES_PER_TOKEN} bytes a token"
        else:
            how = "by its tokenizer"
        told = (
            f"{self.model}: {len(self._counted)} calls to make, {self.usage.reused} answers in the "
            f"ledger; {self._prompt_tokens} prompt tokens ({how}), at most "
            f"{self._completion_tokens} completion tokens"
        )
        if self._unbounded:
            told += f" ({self._unbounded} calls have no bound and count as {UNBOUNDED_ANSWER} each)"
        if self.limits.price is None:
            return f"{told}; give `--price` to see dollars"
        prompt, completion = self.limits.price
        dollars = (self._prompt_tokens * prompt + self._completion_tokens * completion) / 1e6
        return f"{told}; about ${dollars:.4f} at most"

    def _count(self, request: Request) -> None:
        prompt, completion = estimate(request)
        if self._tokens_of is not None:
            prompt = self._tokens_of(request)
        self._prompt_tokens += prompt
        self._completion_tokens += completion
        writes = request.verb in ("chat", "complete")
        self._unbounded += writes and request.sampling.max_tokens is None


def report(
    models: Iterable[LLM],
    rows: Iterable[Named],
    build: Callable[[Row], Awaitable[object]],
    later: str | None,
) -> None:
    """Walks over a job's rows and says what they would ask.

    Args:
        models: `DryRun`s that `build` asks.
        rows: The input, as for `map_rows`.
        build: What the job does with a row, as for `map_rows`.
        later: The calls that cannot be counted before others are answered, None if there are none.
    """
    rejected: Counter[str] = Counter()

    async def walk() -> int:
        count = 0
        for name, row in rows:
            members = len(members_of(name, row))
            count += members
            try:
                await build(row)
            except Reject as error:
                rejected[error.reason] += members
            except CallError:
                continue
        return count

    say(f"dry run over {asyncio.run(walk())} rows: nothing was sent")
    if rejected:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
        say(f"rows that would be rejected as they are: {reasons}")
    for model in models:
        say(str(model))
    if later is not None:
        say(f"not counted: {later}, which depend on answers that are not there yet")
