"""Sample answers to prompts, from a model in this process or behind a server.

An interrupted run goes on where it stopped: a server's answers stand in the ledger, those of a
model in this process in finished chunks of prompts, and they are the same bits either way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from alignment import compat
from alignment.cli import UserError, check_counts, parse, run
from alignment.core.rows import read_rows
from alignment.decoding.figures import Figures, peak_memory
from alignment.decoding.in_context import STOP
from alignment.decoding.options import DecodingOptions
from alignment.decoding.prompting import Prompting, prompting
from alignment.llm.connect import connect, open_ledger, run_rows
from alignment.llm.lock import locked
from alignment.llm.model import PROVIDER, LocalModel
from alignment.llm.options import ShardOptions
from alignment.llm.protocol import GO_ON, CallError, Reply, Request, Sampling, Stopped
from alignment.llm.rows import (
    MapReport,
    Output,
    Reject,
    Row,
    prompt_of,
    refuse_existing,
    reject_row,
)

if TYPE_CHECKING:
    from alignment.decoding.decoder import Answers, Views

logger = logging.getLogger(__name__)

Named = tuple[str, Row]


@dataclass(kw_only=True)
class Options(DecodingOptions, ShardOptions):
    """Options of `alignment generate`."""

    model: str = field(metadata={"help": "a folder or hub id, or a name on the server"})
    prompts: Path = field(metadata={"help": "file of rows with `prompt`; other columns are kept"})
    output: Path = field(metadata={"help": "file to write: the rows with `response`, JSON Lines"})
    base_url: str | None = field(
        default=None, metadata={"help": "address of the server; unset, the model runs here"}
    )
    format: Literal["auto", "chat", "complete"] = field(
        default="auto",
        metadata={"help": "whether text prompts are a user's message; auto: with a chat template"},
    )
    samples: int = field(default=1, metadata={"help": "answers to each prompt, one row each"})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy"})
    top_p: float | None = field(default=None, metadata={"help": "probability mass to draw from"})
    top_k: int | None = field(default=None, metadata={"help": "number of tokens to draw from"})
    max_tokens: int = field(default=512, metadata={"help": "longest answer, tokens"})
    seed: int = field(default=0, metadata={"help": "seed of the draws"})
    limit: int | None = field(default=None, metadata={"help": "use the first prompts only"})
    chunk_size: int = field(default=64, metadata={"help": "prompts between two saves, run here"})
    adapter_kwargs: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "what an adapter is used with, such as '{\"coefficient\": 0.5}'"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "samples", "chunk_size", "limit")
        _ = self.sampling  # whose values are checked before anything is loaded

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        stop = () if self.in_context is None else (STOP,)
        drawn = (self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed)
        return Sampling(*drawn, stop)


def generate(options: Options) -> MapReport:
    """Samples answers and writes them in the order of the prompts.

    Raises:
        UserError: The prompts cannot be read, the output exists, or the model cannot be asked.
    """
    here = options.base_url is None and not options.model.startswith(("program:", "vllm:"))
    if options.adapter_kwargs and not here:
        raise UserError("`--adapter-kwargs` needs an adapter that runs here; a server has its own")
    if here and options.mode == "batch":
        raise UserError(
            f"`--mode batch` needs the address of a provider; {options.model} runs here"
        )
    if here and (options.engine == "ray" or options.part is not None):
        raise UserError(
            f"shards ask servers, and {options.model} runs here: serve it, and pass `--base-url`"
        )
    if not here and options.needs_this_process is not None:
        flag = options.needs_this_process.replace("_", "-")
        raise UserError(
            f"`--{flag}` needs a model in this process, whose logits can be read; give a folder or "
            "a hub id as `--model`, and no `--base-url`"
        )
    if here and not options.dry_run:
        with locked(options.output):
            report = _run_here(options, list(_rows(options)))
    else:
        report = _ask_server(options)
    report.refuse_empty(options.prompts)
    return report


def main(argv: list[str]) -> None:
    """`alignment generate`."""
    compat.ignore_renamed()
    options = parse(Options, argv, "alignment generate", __doc__)
    report = generate(options)
    print(f"{options.output}: {report}")


def _rows(options: Options) -> Iterator[Named]:
    """The rows with `sample`, the index of their first draw: a repeated prompt is drawn anew."""
    seen: Counter[bytes] = Counter()
    for name, row in islice(read_rows(options.prompts), options.limit):
        text = json.dumps([row.get("prompt"), row.get("instruction"), row.get("input")])
        prompt = hashlib.blake2b(text.encode(), digest_size=8).digest()
        yield name, {**row, "sample": seen[prompt]}
        seen[prompt] += options.samples


def _requests(options: Options, asks: Prompting, row: Row) -> list[Request]:
    """The calls that answer a row.

    Raises:
        Reject: The row has no prompt.
    """
    verb, prompt = asks.first(row)
    samples = range(row["sample"], row["sample"] + options.samples)
    return [Request(verb, prompt, (), options.sampling, sample) for sample in samples]


def _asks(options: Options, has_chat_template: bool) -> Prompting:
    chat = options.format == "chat" or (options.format == "auto" and has_chat_template)
    return prompting(options, chat=chat)


def _answer(row: Row, request: Request, reply: Reply, source: Mapping[str, Any]) -> Row:
    meta = row.get("meta")
    return {
        **row,
        "prompt": prompt_of(row),
        "response": reply.text,
        "finish_reason": reply.finish_reason,
        "sample": request.sample,
        "model": source["model"],
        "meta": {
            **(meta if isinstance(meta, dict) else {}),
            **source,
            "verb": request.verb,
            "sampling": request.sampling.settings(),
        },
    }


def _ask_server(options: Options) -> MapReport:
    total = sum(1 for _ in islice(read_rows(options.prompts), options.limit))
    asks = _asks(options, has_chat_template=True)
    with open_ledger(options.output, options) as ledger:
        llm = connect(options.model, options.base_url, ledger, options)
        source = {**llm.source, **_decoding(asks.settings())}

        async def answers(row: Row) -> list[Row]:
            requests = _requests(options, asks, row)
            replies = await asyncio.gather(*(llm.ask(r, keep_truncated=True) for r in requests))
            pairs = zip(requests, replies, strict=True)
            return [_answer(row, request, reply, source) for request, reply in pairs]

        rows = _unsaved(options) if options.dry_run else _rows(options)
        report = run_rows(options, [llm], rows, answers, options.output, total=total)
    print(llm.usage)
    return report


def _unsaved(options: Options) -> Iterator[Named]:
    """The rows that no saved chunk of a model in this process answers."""
    chunks = Path(f"{options.output}.chunks")
    for index, named in enumerate(_rows(options)):
        if not _chunk(chunks, index - index % options.chunk_size).is_file():
            yield named


def _chunk(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.json"


def _run_here(options: Options, rows: Sequence[Named]) -> MapReport:
    refuse_existing(options.output, allowed=options.resume or options.overwrite)
    chunks, settings = Path(f"{options.output}.chunks"), Path(f"{options.output}.settings.json")
    if options.overwrite:
        shutil.rmtree(chunks, ignore_errors=True)
        settings.unlink(missing_ok=True)
    answerer = _Answerer(options)
    _check_settings(settings, answerer.settings(rows))
    if options.resume and options.output.exists() and not chunks.exists():
        return _finished(options, len(rows))
    chunks.mkdir(parents=True, exist_ok=True)
    interrupted = False
    try:
        for start in tqdm(range(0, len(rows), options.chunk_size), unit="chunk", disable=None):
            path = _chunk(chunks, start)
            if not path.is_file():
                _write_whole(path, answerer.chunk(rows[start : start + options.chunk_size]))
    except KeyboardInterrupt:
        interrupted = True
    report, figures = _gather(options.output, sorted(chunks.glob("*.json")))
    if interrupted:
        missing = len(rows) - report.kept - report.dropped.total()
        told = f"interrupted: {missing} of {len(rows)} rows are missing in {options.output}"
        raise Stopped(told, GO_ON, status=130)
    if options.report is not None:
        figures.write(options.report, **answerer.source, kl_from=answerer.decoder.start)
    shutil.rmtree(chunks)
    return report


def _gather(output: Path, chunks: Sequence[Path]) -> tuple[MapReport, Figures]:
    """Writes what stands in chunks; adds up what they took."""
    report, figures = MapReport(), Figures()
    with Output(output) as file:
        for path in chunks:
            chunk = json.loads(path.read_text(encoding="utf-8"))
            figures += Figures.of(chunk["figures"])
            for made, rejected in chunk["rows"]:
                if rejected is not None:
                    report.drop(rejected)
                    file.reject(rejected)
                    continue
                report.kept += 1
                for row in made:
                    file.write(row)
    return report, figures


def _finished(options: Options, rows: int) -> MapReport:
    """The report of a run that left nothing to do."""
    if options.report is not None and not options.report.is_file():
        logger.warning(
            "%s is not written: the answers were finished before, and what they took is not known; "
            "`--overwrite` asks anew",
            options.report,
        )
    report = MapReport()
    rejects = Path(f"{options.output}.rejects.jsonl")
    for _, rejected in read_rows(rejects) if rejects.is_file() else ():
        report.drop(rejected)
    report.kept = rows - report.dropped.total()
    return report


class _Answerer:
    """A model in this process with all that its answers depend on.

    Args:
        options: The options.

    Raises:
        UserError: A model, contrast or example cannot be used.
    """

    def __init__(self, options: Options) -> None:
        from alignment.decoding.decoder import Decoder  # loads torch

        self._options = options
        given = options.adapter_kwargs
        self._local = LocalModel(options.model, options.device, adapter_kwargs=given)
        self._asks = _asks(options, self._local.has_chat_template)
        self.decoder = Decoder(options, self._local, self._asks)
        self.source = {
            "provider": PROVIDER,
            "model": self._local.name,
            "fingerprint": self._local.fingerprint,
            **_decoding(self.decoder.settings()),
        }

    def settings(self, rows: Sequence[Named]) -> dict[str, Any]:
        """All that the answers of a chunk depend on, down to the last bit."""
        options = self._options
        return {
            "model": self._local.fingerprint,
            "device": str(self._local.device),
            "prompts": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
            "format": options.format,
            "samples": options.samples,
            "chunk_size": options.chunk_size,
            "batch_size": options.batch_size,
            "kl_from": self.decoder.start,
            **self.decoder.settings(),
            **options.sampling.settings(),
        }

    def chunk(self, rows: Sequence[Named]) -> dict[str, Any]:
        """For each row its answers, or why it has none; and what they took."""
        prepared: list[tuple[Row, list[Views], Row | None]] = []
        for name, row in rows:
            try:
                requests = _requests(self._options, self._asks, row)
                views = [self.decoder.encode(request, row) for request in requests]
                prepared.append((row, views, None))
            except (Reject, CallError) as error:
                prepared.append((row, [], reject_row(name, row, error)))
        waiting = [views for _, several, _ in prepared for views in several]
        replies, figures = self._replies(waiting)
        answered = [
            [_answer(row, views.first.request, *next(replies)) for views in several]
            for row, several, _ in prepared
        ]
        rejects = [rejected for _, _, rejected in prepared]
        return {
            "rows": list(zip(answered, rejects, strict=True)),
            "figures": vars(figures),
        }

    def _replies(
        self, waiting: Sequence[Views]
    ) -> tuple[Iterator[tuple[Reply, dict[str, Any]]], Figures]:
        """Replies, each with where it comes from; and what they took."""
        figures, replies = Figures(), list[tuple[Reply, dict[str, Any]]]()
        for start in range(0, len(waiting), self._options.batch_size):
            batch = waiting[start : start + self._options.batch_size]
            took, made = self._timed(batch)
            figures += took
            for index, reply in enumerate(made.replies):
                kl = {} if made.kl is None else {"kl": made.kl[index]}
                replies.append((reply, {**self.source, **kl}))
        return iter(replies), figures

    def _timed(self, batch: Sequence[Views]) -> tuple[Figures, Answers]:
        began = time.perf_counter()
        made = self.decoder.answer(batch)
        figures = Figures(
            answers=len(batch),
            tokens=sum(reply.completion_tokens or 0 for reply in made.replies),
            seconds=time.perf_counter() - began - made.measuring,
            memory=peak_memory(self._local.device),
            kl=None if made.kl is None else sum(made.kl),
        )
        return figures, made


def _decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside an answer of how it was decoded; nothing where it was plain."""
    return {"decoding": dict(settings)} if settings else {}


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to mix answers: those of an interrupted run must have been made the same way."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if changed:
        raise UserError(
            f"{path} tells of a run with another {', '.join(changed)}; repeat that run's options "
            "to go on with it, or pass `--overwrite` to start anew"
        )


def _write_whole(path: Path, value: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    run(main)
