"""From the options of a command to a model that can be asked."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.cli import UserError, say
from alignment.llm.calls import source_of
from alignment.llm.engine import LLM
from alignment.llm.fingerprint import identity
from alignment.llm.ledger import Ledger
from alignment.llm.lock import locked
from alignment.llm.options import CallOptions, ShardOptions, part_of
from alignment.llm.pacing import Limits
from alignment.llm.protocol import Backend
from alignment.llm.rows import MapReport, Named, Reject, Row, map_rows, refuse_existing
from alignment.llm.shards import discard, join

if TYPE_CHECKING:
    from alignment.llm.openai import OpenAIBackend

_ELSEWHERE = ("program:", "scorer:")
"""Beginnings of names of what takes no weights in this process."""
_HERE = ("vllm", "reward", "comet")
"""Kinds of models for this process that are said before a colon."""
_PATIENCE = 60.0
"""Seconds in which a worker whose machine was given up may find out and end."""


def connect(model: str, base_url: str | None, ledger: Ledger, options: CallOptions) -> LLM:
    """A model behind the backend that its name and address call for.

    Args:
        model: With `base_url` the name that the server knows; else a folder or hub id of a model
            for this process, the same after `vllm:` or, for a reward model, after `reward:`; or
            `program:module.function`. Scorers of texts are `scorer:URL` and `comet:MODEL`.
        base_url: Address of an OpenAI-compatible API.
        ledger: Where finished calls are kept.
        options: How to ask.

    Raises:
        UserError: There is no such model, program or key.
    """
    low, high = options.price or (0.0, 0.0)
    limits = Limits(
        options.concurrency,
        options.attempts,
        price=None if options.price is None else (low, high),
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        max_cost=options.max_cost,
    )
    if options.mode == "batch" and base_url is None:
        raise UserError(f"`--mode batch` needs the address of a provider; {model} runs here")
    if options.dry_run:
        return _dry_run(model, base_url, ledger, options, limits)
    if options.mode == "batch":
        from alignment.llm.batch import BatchLLM, Bounds

        bounds = Bounds(options.batch_requests, poll=options.poll_interval)
        return BatchLLM(_server(model, str(base_url), options), ledger, limits, bounds)
    if base_url is None and not model.startswith(_ELSEWHERE):
        # One batch runs while another gathers; vLLM takes all that is in flight.
        least = 256 if model.startswith("vllm:") else 2 * options.batch_size
        limits = replace(limits, concurrency=max(options.concurrency, least))
    return LLM(_backend(model, base_url, options), ledger, limits)


def run_rows(  # noqa: PLR0913 - all named
    options: CallOptions,
    models: Sequence[LLM],
    rows: Iterable[Named],
    build: Callable[[Row], Awaitable[Iterable[Row | Reject]]],
    output: str | Path,
    *,
    total: int | None = None,
    later: str | None = None,
) -> MapReport:
    """Runs a job's calls over its rows, or says what they would be.

    Args:
        options: How to ask.
        models: All that `build` asks, from `connect`.
        rows: As for `map_rows`.
        build: As for `map_rows`.
        output: As for `map_rows`.
        total: As for `map_rows`.
        later: What a dry run cannot count: the calls whose prompts hold answers to other calls.

    Raises:
        Stopped: As for `map_rows`.
        UserError: As for `map_rows`; or two servers' models are one to the ledger.
        SystemExit: After a dry run, or a shard.
    """
    _check_told_apart(models)
    part = part_of(options)
    if part is not None:
        rows, output, total = part.rows(rows), part.file(output), None
    if options.dry_run:
        from alignment.llm.dry_run import report

        report(models, rows, build, later)
        raise SystemExit(0)
    if models and isinstance(options, ShardOptions) and options.engine == "ray":
        from alignment.llm.ray_data import scatter

        scatter(options, models[0].ledger, output)
        join(output, models[0].ledger)

    # A batch holds calls of rows in work alone; elsewhere the default keeps memory small.
    window = {"window": options.batch_requests} if options.mode == "batch" else {}

    async def job() -> MapReport:
        async with AsyncExitStack() as stack:
            for model in models:
                await stack.enter_async_context(model)
            return await map_rows(rows, build, output, total=total, **window)

    made = asyncio.run(job())
    if part is not None:
        say(f"shard {part}: {made}")
        raise SystemExit(0)
    return made


def _check_told_apart(models: Sequence[LLM]) -> None:
    """Refuses two servers on one host whose models have one name.

    The ledger leaves ports out, as a server may come back at another one; such models would answer
    for each other.
    """
    urls: dict[tuple[str, ...], str] = {}
    for backend in (model.backend for model in models):
        url = getattr(backend, "url", "")
        known = urls.setdefault(tuple(source_of(backend).values()), url)
        if url != known:
            raise UserError(
                f"{known} and {url} both have a model named `{backend.model}`, which the ledger "
                "cannot tell apart: give one another name where it is served"
            )


def _dry_run(
    model: str, base_url: str | None, ledger: Ledger, options: CallOptions, limits: Limits
) -> LLM:
    from alignment.llm.dry_run import DryRun, Unasked

    kind, name = _kind_of(model)
    tokens_of = None
    if Path(name).is_dir():
        from alignment.llm.model import token_counter

        tokens_of = token_counter(name)
    if base_url is not None or model.startswith(_ELSEWHERE):
        return DryRun(_backend(model, base_url, options), ledger, limits, tokens_of)
    # Nothing is loaded that takes long.
    return DryRun(Unasked(*_ledger_names(kind, name, options)), ledger, limits, tokens_of)


def _kind_of(model: str) -> tuple[str, str]:
    """`reward` and `FOLDER` of `reward:FOLDER`; no kind where a name merely holds a colon."""
    kind, _, name = model.partition(":")
    return (kind, name) if kind in _HERE else ("", model)


def _ledger_names(kind: str, name: str, options: CallOptions) -> tuple[str, str, str]:
    """Provider, name and fingerprint of a model for this process, as its backend has them."""
    from alignment.llm.model import PROVIDER, cached_commit

    if kind in ("vllm", "comet"):
        return kind, *identity(name, options.model_revision)
    return f"{PROVIDER} {kind}".strip(), *identity(name, cached_commit(name))


def _server(model: str, base_url: str, options: CallOptions) -> OpenAIBackend:
    from alignment.llm.openai import OpenAIBackend

    return OpenAIBackend(
        model, base_url, options.api_key_env, options.model_revision, options.timeout
    )


def _backend(model: str, base_url: str | None, options: CallOptions) -> Backend:
    if base_url is not None:
        return _server(model, base_url, options)
    if model.startswith("program:"):
        from alignment.llm.program import ProgramBackend

        program = load_dotted(model.removeprefix("program:"), "program")
        return ProgramBackend(program, model, options.model_revision)
    if model.startswith(("reward:", "scorer:", "comet:")):
        return _scorer(model, options)
    if model.startswith("vllm:"):
        from alignment.llm.vllm import VLLMBackend

        return VLLMBackend(model.removeprefix("vllm:"), options.model_revision)
    from alignment.llm.local import LocalBackend

    return LocalBackend(model, options.device, options.batch_size)


def _scorer(model: str, options: CallOptions) -> Backend:
    """What gives texts numbers rather than writing any."""
    kind, _, name = model.partition(":")
    if kind == "reward":
        from alignment.llm.reward import RewardBackend

        return RewardBackend(name, options.device, options.batch_size)
    if kind == "comet":
        from alignment.llm.comet import CometBackend

        return CometBackend(name, options.model_revision, options.batch_size)
    from alignment.llm.scorer import HTTPScorer

    return HTTPScorer(name, options.api_key_env, options.model_revision, options.timeout)


@contextmanager
def open_ledger(output: str | Path, options: CallOptions) -> Iterator[Ledger]:
    """The ledger of a job, whose output no other job may write meanwhile.

    Args:
        output: The file or folder that the job makes; the ledger lies beside it, `<output>.ledger`,
            unless the options name another.
        options: Whether an output that exists may be touched. `overwrite` drops the ledger too,
            unless it was named: a named ledger may serve other jobs. A dry run writes none; a
            shard has one of its own, before that of the job, which takes in those of its shards.

    Raises:
        UserError: The output exists and no flag allows touching it, another job is writing it, or
            the ledger is unusable.
    """
    path = options.ledger or Path(f"{output}.ledger")
    if options.dry_run:
        anew = options.overwrite and options.ledger is None
        with Ledger(path if path.exists() and not anew else None) as ledger:
            yield ledger
        return
    if (part := part_of(options)) is not None:
        own = part.file(output)
        with locked(own, _PATIENCE), Ledger(f"{own}.ledger", behind=path) as ledger:
            ledger.disown()  # what ran here before is dead, perhaps with its machine
            yield ledger
        return
    with locked(output):
        refuse_existing(output, allowed=options.resume or options.overwrite)
        if options.overwrite and options.ledger is None:
            discard(output)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        with Ledger(path) as ledger:
            join(output, ledger)
            yield ledger


def load_dotted(dotted: str, what: str) -> Any:
    """What a dotted path names.

    Args:
        dotted: `module.name`.
        what: What it is, for messages.

    Raises:
        UserError: There is no such thing.
    """
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        form = "program:module.function" if what == "program" else "module.function"
        raise UserError(f"no {what} `{dotted}`: {error}; give `{form}`") from None
