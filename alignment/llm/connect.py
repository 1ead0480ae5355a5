"""From the options of a command to a model that can be asked."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.lock import locked
from alignment.llm.pacing import Limits
from alignment.llm.protocol import Backend
from alignment.llm.rows import refuse_existing


@dataclass(kw_only=True)
class CallOptions:
    """What every command that asks models takes beside its own options."""

    resume: bool = field(default=False, metadata={"help": "go on with an output that exists"})
    overwrite: bool = field(default=False, metadata={"help": "start anew where an output exists"})
    ledger: Path | None = field(
        default=None, metadata={"help": "keeps finished calls; a file beside the output if unset"}
    )
    concurrency: int = field(default=16, metadata={"help": "most calls in flight"})
    attempts: int = field(default=8, metadata={"help": "most requests sent for one call"})
    timeout: float = field(default=600.0, metadata={"help": "seconds for one request"})
    api_key_env: str | None = field(
        default=None,
        metadata={"help": "variable with the API key; OPENAI_API_KEY for OpenAI itself, else none"},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "tells models of one name apart in the ledger"}
    )
    price: tuple[float, ...] | None = field(
        default=None, metadata={"help": "dollars for a million prompt and completion tokens"}
    )
    max_cost: float | None = field(
        default=None,
        metadata={"help": "most dollars that the ledger may come to; needs `--price`"},
    )
    requests_per_minute: float | None = field(
        default=None, metadata={"help": "most requests sent in a minute"}
    )
    tokens_per_minute: float | None = field(
        default=None, metadata={"help": "most tokens, read and written, in a minute"}
    )
    device: str | None = field(
        default=None, metadata={"help": "where a model in this process runs"}
    )
    batch_size: int = field(
        default=16, metadata={"help": "prompts that a model in this process answers together"}
    )

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("`--resume` and `--overwrite` exclude each other")
        if min(self.concurrency, self.attempts, self.batch_size) < 1:
            raise ValueError("`concurrency`, `attempts` and `batch_size` must be at least 1")
        if self.price is not None and len(self.price) != 2:
            raise ValueError("`price` takes two numbers: for prompt and for completion tokens")
        if self.max_cost is not None and self.price is None:
            raise ValueError("`max_cost` needs `price`: dollars for a million tokens of each kind")
        for name in ("max_cost", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0")


def connect(model: str, base_url: str | None, ledger: Ledger, options: CallOptions) -> LLM:
    """A model behind the backend that its name and address call for.

    Args:
        model: With `base_url` the name that the server knows; else a folder or hub id of a model
            for this process, or `program:module.function`.
        base_url: Address of an OpenAI-compatible API.
        ledger: Where finished calls are kept.
        options: How to ask.

    Raises:
        UserError: There is no such model, program or key.
    """
    concurrency = options.concurrency
    backend: Backend
    if base_url is not None:
        from alignment.llm.openai import OpenAIBackend

        backend = OpenAIBackend(
            model, base_url, options.api_key_env, options.model_revision, options.timeout
        )
    elif model.startswith("program:"):
        from alignment.llm.program import ProgramBackend

        backend = ProgramBackend(
            _load(model.removeprefix("program:")), model, options.model_revision
        )
    else:
        from alignment.llm.local import LocalBackend

        backend = LocalBackend(model, options.device, options.batch_size)
        concurrency = max(concurrency, 2 * options.batch_size)  # one batch runs, one gathers
    low, high = options.price or (0.0, 0.0)
    limits = Limits(
        concurrency,
        options.attempts,
        price=None if options.price is None else (low, high),
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        max_cost=options.max_cost,
    )
    return LLM(backend, ledger, limits)


@contextmanager
def open_ledger(output: str | Path, options: CallOptions) -> Iterator[Ledger]:
    """The ledger of a job, whose output no other job may write meanwhile.

    Args:
        output: The file or folder that the job makes; the ledger lies beside it, `<output>.ledger`,
            unless the options name another.
        options: Whether an output that exists may be touched. `overwrite` drops the ledger too,
            unless it was named: a named ledger may serve other jobs.

    Raises:
        UserError: The output exists and no flag allows touching it, another job is writing it, or
            the ledger is unusable.
    """
    with locked(output):
        refuse_existing(output, allowed=options.resume or options.overwrite)
        path = options.ledger or Path(f"{output}.ledger")
        if options.overwrite and options.ledger is None:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        with Ledger(path) as ledger:
            yield ledger


def _load(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(f"no program `{dotted}`: {error}; give `program:module.function`") from None
