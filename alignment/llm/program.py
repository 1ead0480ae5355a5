"""Programs in the place of models: they answer through the same engine and the same ledger."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.pacing import Limits
from alignment.llm.protocol import CallError, Reply, Request, Verb

Program = Callable[[Request], "str | Reply"]


class ProgramBackend:
    """A function as a model: requests in, text out.

    Args:
        program: Returns the answer to a request, or raises `CallError`. It is called on the event
            loop and must not wait.
        name: The model name that records show.
        fingerprint: Changes whenever the program would answer otherwise. By default a checksum of
            the file it is defined in, which sees neither the data it closes over nor other files.
        verbs: What it answers.
    """

    provider = "program"

    def __init__(
        self,
        program: Program,
        name: str,
        fingerprint: str | None = None,
        verbs: Iterable[Verb] = ("chat", "complete", "reward"),
    ) -> None:
        self.program = program
        self.model = name
        if fingerprint is None:
            source = Path(inspect.getfile(inspect.unwrap(program))).read_bytes()
            fingerprint = hashlib.sha256(source).hexdigest()[:16]
        self.fingerprint = fingerprint
        self.verbs: frozenset[Verb] = frozenset(verbs)

    async def ask(self, request: Request) -> Reply:
        """The program's answer.

        Raises:
            UserError: The program failed in a way that no caller expects, or returned no text.
        """
        try:
            answer = self.program(request)
        except (CallError, UserError):
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"`{self.model}` failed: {type(error).__name__}: {error} "
                f"({where.filename}:{where.lineno})"
            ) from error
        if not isinstance(answer, str | Reply):
            raise UserError(
                f"`{self.model}` returned {type(answer).__name__}; a program is a plain function "
                "that returns text or a `Reply`"
            )
        return answer if isinstance(answer, Reply) else Reply(answer)

    async def close(self) -> None:
        """Nothing to free."""


class FakeLLM(LLM):
    """A model for unit tests that answers by a rule or from a list.

    Args:
        answers: A function of the request; or answers in the order of the requests, where an
            exception is raised instead of returned.
        ledger: As for `LLM`.
        limits: As for `LLM`; without waits between attempts by default.
        model: Name of the model.

    Attributes:
        requests: The requests that reached it, in order.
    """

    def __init__(
        self,
        answers: Program | Iterable[str | Reply | Exception],
        ledger: Ledger | None = None,
        limits: Limits | None = None,
        *,
        model: str = "fake",
    ) -> None:
        self.requests: list[Request] = []
        script = None if callable(answers) else iter(answers)

        def program(request: Request) -> str | Reply:
            self.requests.append(request)
            if script is None:
                return answers(request)  # type: ignore[operator]
            answer = next(script, RuntimeError("more requests than answers"))
            if isinstance(answer, Exception):
                raise answer
            return answer

        verbs: tuple[Verb, ...] = ("chat", "complete", "score", "reward")
        backend = ProgramBackend(program, model, "fake", verbs)
        super().__init__(backend, ledger, limits or Limits(backoff=0.0))
