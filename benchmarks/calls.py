"""What the call engine costs: throughput, answers from the ledger, memory.

    python -m benchmarks.calls [--json FILE]

Throughput is that of a job (ledger on, output written) against a bare asyncio loop with the same
`openai` client, both with as many requests in flight and their connections open, against a server
in a process of its own that takes its time; the two take turns. An answer from the ledger is
compared with a bare `SELECT` of the same columns by key, in turns too. Memory is the high-water
mark of a process that maps rows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.openai import OpenAIBackend
from alignment.llm.pacing import Limits
from alignment.llm.program import ProgramBackend
from alignment.llm.protocol import Message, Request, Sampling
from alignment.llm.rows import Row, map_rows

SAMPLING = Sampling(temperature=0.7, max_tokens=256, seed=0)
ANSWER = "A sentence of the answer, as long as sentences tend to be. " * 10
SELECT = (
    "SELECT text, finish_reason, prompt_tokens, completion_tokens, logps, top_logprobs"
    " FROM calls WHERE key = ?"
)
_fresh = count()


def messages(number: int) -> list[Message]:
    """A prompt of some hundred characters."""
    return [{"role": "user", "content": f"Question {number}: " + "what would you say? " * 20}]


def rows(size: int) -> Iterator[tuple[str, Row]]:
    """Rows that no earlier call of this function has given."""
    for number in range(size):
        yield f"row {number}", {"number": next(_fresh)}


async def serve(latency: float) -> None:
    """Answers every request after `latency` seconds; prints the port."""
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}}
    usage = {"prompt_tokens": 110, "completion_tokens": 120, "total_tokens": 230}
    body = json.dumps({"choices": [choice | {"finish_reason": "stop"}], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    answer = head.encode() + b"\r\n\r\n" + body

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = asked.partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                await asyncio.sleep(latency)
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def server_process(latency: float) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--serve", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


async def bare(url: str, size: int, in_flight: int) -> float:
    """Requests per second of as many loops as there are requests in flight."""
    backend = OpenAIBackend("model", url)

    async def loop(numbers: Iterator[int]) -> None:
        for number in numbers:
            path, body = backend.body(Request("chat", messages(number), sampling=SAMPLING))
            answer: Any = await backend.client.post(path, cast_to=object, body=body)
            assert answer["choices"][0]["message"]["content"] == ANSWER

    async def loops(requests: int) -> float:
        numbers = iter([row["number"] for _, row in rows(requests)])
        started = time.perf_counter()
        await asyncio.gather(*(loop(numbers) for _ in range(in_flight)))
        return time.perf_counter() - started

    await loops(in_flight)  # opens the connections
    seconds = await loops(size)
    await backend.close()
    return size / seconds


async def engine(url: str, size: int, in_flight: int) -> float:
    """Requests per second of a job."""
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder) / "ledger") as ledger:
            backend = OpenAIBackend("model", url)
            async with LLM(backend, ledger, Limits(concurrency=in_flight)) as llm:
                await map_rows(rows(in_flight), asking(llm), Path(folder) / "first.jsonl")
                started = time.perf_counter()
                await map_rows(rows(size), asking(llm), Path(folder) / "output.jsonl")
                seconds = time.perf_counter() - started
        assert llm.usage.requests == llm.usage.calls == in_flight + size
    return size / seconds


def asking(llm: LLM) -> Callable[[Row], Awaitable[list[Row]]]:
    """One call and one row for each row."""

    async def build(row: Row) -> list[Row]:
        reply = await llm.chat(messages(row["number"]), SAMPLING)
        return [{**row, "response": reply.text}]

    return build


def throughput(size: int, in_flight: int, latency: float, rounds: int) -> dict[str, float]:
    """Medians of requests per second over turns of both."""
    found: dict[str, list[float]] = {"bare": [], "engine": []}
    with server_process(latency) as url:
        for _ in range(rounds):
            found["bare"].append(asyncio.run(bare(url, size, in_flight)))
            found["engine"].append(asyncio.run(engine(url, size, in_flight)))
    ratios = [mine / base for mine, base in zip(found["engine"], found["bare"], strict=True)]
    return {
        "requests_per_second_bare": median(found["bare"]),
        "requests_per_second_engine": median(found["engine"]),
        "ratio": median(found["engine"]) / median(found["bare"]),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
    }


def program(request: Request) -> str:
    """An answer at once."""
    return f"{request.sample} {ANSWER}"


def reading(size: int, rounds: int) -> dict[str, float]:
    """Medians of microseconds for an answer from the ledger and for a bare `SELECT` by key."""
    found: dict[str, list[float]] = {"select": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        with Ledger(path) as ledger:
            llm = LLM(ProgramBackend(program, "model", "1"), ledger, Limits(concurrency=256))
            asked = [Request("chat", messages(number), sampling=SAMPLING) for number in range(size)]
            asyncio.run(_ask_all(llm, asked))
            keys = [llm.key(request) for request in asked]
            database = sqlite3.connect(path)
            for _ in range(rounds):
                started = time.perf_counter()
                for key in keys:
                    database.execute(SELECT, (key,)).fetchone()
                found["select"].append((time.perf_counter() - started) / size * 1e6)
                found["engine"].append(asyncio.run(_time_answers(llm, size)) / size * 1e6)
            assert llm.usage.calls == size
            assert llm.usage.reused == rounds * size
            database.close()
    middle = {name: median(values) for name, values in found.items()}
    return {
        "microseconds_select": middle["select"],
        "microseconds_engine": middle["engine"],
        "ratio": middle["engine"] / middle["select"],
    }


async def _ask_all(llm: LLM, asked: Sequence[Request]) -> None:
    for start in range(0, len(asked), 1000):
        await asyncio.gather(*(llm.ask(request) for request in asked[start : start + 1000]))


async def _time_answers(llm: LLM, size: int) -> float:
    prompts = [messages(number) for number in range(size)]
    started = time.perf_counter()
    for prompt in prompts:
        await llm.chat(prompt, SAMPLING)
    return time.perf_counter() - started


def memory(size: int) -> float:
    """Megabytes at most in a process that maps so many rows, first by calls, then by ledger."""
    command = [sys.executable, "-m", __spec__.name, "--rows", str(size)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


async def map_many(size: int) -> None:
    """Maps rows twice; the second time the ledger answers."""
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger") as ledger:
        llm = LLM(ProgramBackend(program, "model", "1"), ledger)
        for _ in range(2):
            numbered = ((f"row {number}", {"number": number}) for number in range(size))
            await map_rows(numbered, asking(llm), Path(folder) / "output.jsonl")
        assert (llm.usage.calls, llm.usage.reused) == (size, size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each of the three."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--requests", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs=2, default=[10_000, 100_000], help="rows")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    if options.rows is not None:
        asyncio.run(map_many(options.rows))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    found = throughput(options.requests, options.in_flight, options.latency, options.rounds)
    print(
        f"requests per second, {options.in_flight} in flight, {options.latency * 1000:.0f} ms: "
        f"bare {found['requests_per_second_bare']:.0f}, "
        f"engine {found['requests_per_second_engine']:.0f}, ratio {found['ratio']:.3f} "
        f"({found['lowest_ratio']:.3f} to {found['highest_ratio']:.3f})",
        flush=True,
    )
    read = reading(10_000, options.rounds)
    print(
        f"microseconds for an answer from the ledger: SELECT {read['microseconds_select']:.1f}, "
        f"engine {read['microseconds_engine']:.1f}, ratio {read['ratio']:.2f}",
        flush=True,
    )
    few, many = options.sizes
    megabytes = {size: memory(size) for size in options.sizes}
    print(
        f"megabytes at most: {few} rows {megabytes[few]:.1f}, {many} rows {megabytes[many]:.1f}, "
        f"ratio {megabytes[many] / megabytes[few]:.3f}"
    )
    if options.json:
        whole = {"throughput": found, "reading": read, "megabytes": megabytes}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
