"""Sample answers to prompts, from a model in this process or behind a server.

An interrupted run goes on where it stopped: a server's answers stand in the ledger, those of a
model in this process in finished chunks of prompts, and they are the same bits either way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from alignment.cli import UserError, parse, run
from alignment.core.rows import read_rows
from alignment.llm.connect import CallOptions, connect, open_ledger, run_rows
from alignment.llm.lock import locked
from alignment.llm.model import PROVIDER, Encoded, LocalModel
from alignment.llm.prompts import as_messages
from alignment.llm.protocol import GO_ON, CallError, Reply, Request, Sampling, Stopped, Verb
from alignment.llm.rows import (
    MapReport,
    Output,
    Reject,
    Row,
    prompt_of,
    refuse_existing,
    reject_row,
)

Named = tuple[str, Row]


@dataclass(kw_only=True)
class Options(CallOptions):
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
        if min(self.samples, self.chunk_size, self.max_tokens) < 1:
            raise ValueError("`samples`, `chunk_size` and `max_tokens` must be at least 1")

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed)


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
    if here and not options.dry_run:
        with locked(options.output):
            report = _run_here(options, list(_rows(options)))
    else:
        report = _ask_server(options)
    report.refuse_empty(options.prompts)
    return report


def main(argv: list[str]) -> None:
    """`alignment generate`."""
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


def _requests(options: Options, row: Row, has_chat_template: bool) -> list[Request]:
    """The calls that answer a row.

    Raises:
        Reject: The row has no prompt.
    """
    prompt = prompt_of(row)
    chat = options.format == "chat" or (options.format == "auto" and has_chat_template)
    verb: Verb = "chat" if chat or not isinstance(prompt, str) else "complete"
    asked = as_messages(prompt) if verb == "chat" else prompt
    samples = range(row["sample"], row["sample"] + options.samples)
    return [Request(verb, asked, (), options.sampling, sample) for sample in samples]


def _answer(row: Row, request: Request, reply: Reply, source: Mapping[str, str]) -> Row:
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
    with open_ledger(options.output, options) as ledger:
        llm = connect(options.model, options.base_url, ledger, options)

        async def answers(row: Row) -> list[Row]:
            requests = _requests(options, row, has_chat_template=True)
            replies = await asyncio.gather(*(llm.ask(r, keep_truncated=True) for r in requests))
            pairs = zip(requests, replies, strict=True)
            return [_answer(row, request, reply, llm.source) for request, reply in pairs]

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
    local = LocalModel(options.model, options.device, adapter_kwargs=options.adapter_kwargs)
    _check_settings(settings, _settings(options, rows, local))
    if options.resume and options.output.exists() and not chunks.exists():
        return _finished(options, len(rows))
    chunks.mkdir(parents=True, exist_ok=True)
    interrupted = False
    try:
        for start in tqdm(range(0, len(rows), options.chunk_size), unit="chunk", disable=None):
            path = _chunk(chunks, start)
            if not path.is_file():
                part = rows[start : start + options.chunk_size]
                _write_whole(path, _answer_chunk(options, part, local))
    except KeyboardInterrupt:
        interrupted = True
    report = _gather(options.output, sorted(chunks.glob("*.json")))
    if interrupted:
        missing = len(rows) - report.kept - report.dropped.total()
        told = f"interrupted: {missing} of {len(rows)} rows are missing in {options.output}"
        raise Stopped(told, GO_ON, status=130)
    shutil.rmtree(chunks)
    return report


def _gather(output: Path, chunks: Sequence[Path]) -> MapReport:
    """Writes what stands in chunks."""
    report = MapReport()
    with Output(output) as file:
        for path in chunks:
            for made, rejected in json.loads(path.read_text(encoding="utf-8")):
                if rejected is not None:
                    report.drop(rejected)
                    file.reject(rejected)
                    continue
                report.kept += 1
                for row in made:
                    file.write(row)
    return report


def _finished(options: Options, rows: int) -> MapReport:
    """The report of a run that left nothing to do."""
    report = MapReport()
    rejects = Path(f"{options.output}.rejects.jsonl")
    for _, rejected in read_rows(rejects) if rejects.is_file() else ():
        report.drop(rejected)
    report.kept = rows - report.dropped.total()
    return report


def _answer_chunk(
    options: Options, rows: Sequence[Named], local: LocalModel
) -> list[tuple[list[Row], Row | None]]:
    """For each row its answers, or why it has none."""
    source = {"provider": PROVIDER, "model": local.name, "fingerprint": local.fingerprint}
    prepared: list[tuple[Row, list[Encoded], Row | None]] = []
    for name, row in rows:
        try:
            requests = _requests(options, row, local.has_chat_template)
            prepared.append((row, [local.encode(request) for request in requests], None))
        except (Reject, CallError) as error:
            prepared.append((row, [], reject_row(name, row, error)))
    waiting = [encoded for _, several, _ in prepared for encoded in several]
    replies = iter(
        reply
        for start in range(0, len(waiting), options.batch_size)
        for reply in local.answer(waiting[start : start + options.batch_size])
    )
    return [
        ([_answer(row, encoded.request, next(replies), source) for encoded in several], rejected)
        for row, several, rejected in prepared
    ]


def _settings(options: Options, rows: Sequence[Named], local: LocalModel) -> dict[str, Any]:
    """All that the answers of a chunk depend on, down to the last bit."""
    return {
        "model": local.fingerprint,
        "device": str(local.device),
        "prompts": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
        "format": options.format,
        "samples": options.samples,
        "chunk_size": options.chunk_size,
        "batch_size": options.batch_size,
        **options.sampling.settings(),
    }


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
