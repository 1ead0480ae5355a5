"""A scripted server that speaks OpenAI's protocol, with everything that goes wrong out there."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    Attributes:
        text: The assistant's words, or the text of a completion.
        status: HTTP status; anything but 200 comes with `error`.
        error: The body of an error.
        headers: Further headers.
        raw: Sent as it is in place of a well-formed body.
        content_type: Of the body.
        drop: Closes the connection without an answer.
        delay: Seconds before the answer.
        finish_reason: As the protocol has it.
        message: Further fields of the assistant's message, such as `refusal`.
        choice: Further fields of the choice, such as `logprobs`.
    """

    text: str = "ok"
    status: int = 200
    error: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    content_type: str = "application/json"
    drop: bool = False
    delay: float = 0.0
    finish_reason: str = "stop"
    message: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)


Script = Callable[[int, Body], Answer] | Sequence[Answer]


class ScriptedServer:
    """The server's address and what it was asked.

    Attributes:
        url: Address of the API.
        bodies: The bodies of all calls, in the order of arrival.
        headers: Their headers, names in lower case.
        most_in_flight: Most calls that were in work at the same time.
        in_flight: Calls that are in work now.
        connections: Connections that have been accepted and are not done with.
        open: Cleared, it keeps answers back until it is set again.
    """

    def __init__(self, script: Script, models: Sequence[str]) -> None:
        self.script = script
        self.models = models
        self.url = ""
        self.bodies: list[Body] = []
        self.headers: list[Mapping[str, str]] = []
        self.most_in_flight = 0
        self.in_flight = 0
        self.connections = 0
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()

    def arrive(self, body: Body, headers: Mapping[str, str]) -> Answer:
        with self._lock:
            index = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if callable(self.script):
            return self.script(index, body)
        return self.script[min(index, len(self.script) - 1)]

    def leave(self) -> None:
        with self._lock:
            self.in_flight -= 1

    def connect(self, change: int) -> None:
        with self._lock:
            self.connections += change

    def settle(self) -> None:
        """Waits until everything that clients sent before they were killed has arrived.

        Connections are accepted in their order, so those that wait come before this one.
        """
        with urllib.request.urlopen(f"{self.url}/models") as answer:
            answer.read()
        while self.connections:
            time.sleep(0.001)


def last_words(body: Body) -> str:
    """The prompt of a body: the last message, or the text to complete."""
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


TROUBLES: Mapping[str, Answer] = {
    "answered": Answer("fine"),
    "slow": Answer("fine", delay=0.05),
    "429": Answer(status=429, headers={"retry-after": "0.02"}),
    "500": Answer(status=500, error={"error": {"message": "oops"}}),
    "dropped": Answer(drop=True),
    "cut json": Answer(raw=b'{"choices": [{"message": {"role": "assis'),
    "refused": Answer("I would rather not", finish_reason="content_filter"),
    "truncated": Answer("this goes on and", finish_reason="length"),
}
"""What a server may do, by name."""
OUTCOMES: Mapping[str, str] = {
    **{"answered": "answered", "slow": "answered", "refused": "refused"},
    **{"truncated": "truncated", "429": "rate_limited", "500": "failed"},
    **{"dropped": "failed", "cut json": "unparseable"},
}
"""How a call ends whose last request met it."""


class Mix:
    """A script that draws what happens to each request of each prompt, whatever the order.

    Attributes:
        log: What was done, in order: the prompt and a key of `TROUBLES`.
    """

    def __init__(self, seed: int, **weights: float) -> None:
        self.seed = seed
        self.weights = weights
        self.log: list[tuple[str, str]] = []
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, index: int, body: Body) -> Answer:
        words = last_words(body)
        with self._lock:
            self._seen[words] += 1
            draw = random.Random(f"{self.seed} {words} {self._seen[words]}")
            names, weights = zip(*self.weights.items(), strict=True)
            (name,) = draw.choices([name.replace("_", " ") for name in names], weights)
            self.log.append((words, name))
        return TROUBLES[name]

    def last(self) -> dict[str, str]:
        """What the last request of each prompt met."""
        return dict(self.log)


@contextmanager
def serve(
    script: Script, models: Sequence[str] = ("tiny",), port: int = 0
) -> Iterator[ScriptedServer]:
    """Runs a server until the block ends.

    Args:
        script: A function of the call's number and body, or answers in order, the last for ever.
        models: What it lists under `/models`; any model name is served unless the script objects.
        port: Where it listens; any free one by default.
    """
    server = ScriptedServer(script, models)

    class Handler(_Handler):
        scripted = server

    with listening(Handler, port, server.connect) as server.url:
        try:
            yield server
        finally:
            server.open.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    connect: Callable[[int], None]

    def process_request(self, *request: Any) -> None:
        self.connect(1)
        super().process_request(*request)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.connect(-1)

    def handle_error(self, *_: object) -> None:
        """Stays silent: clients that are killed leave broken pipes."""


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler],
    port: int = 0,
    connect: Callable[[int], None] = lambda change: None,
) -> Iterator[str]:
    """Answers requests in a thread until the block ends; gives the address of the API.

    Args:
        handler: Of a connection.
        port: Where; any free one by default.
        connect: Is told by how many connections there are more.
    """
    http = _Server(("127.0.0.1", port), handler)
    http.connect = connect
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    scripted: ScriptedServer

    def do_GET(self) -> None:
        listed = [{"id": name, "object": "model"} for name in self.scripted.models]
        self._send(200, json.dumps({"object": "list", "data": listed}).encode(), {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = self.scripted.arrive(
            body, {name.lower(): value for name, value in self.headers.items()}
        )
        try:
            time.sleep(answer.delay)
            self.scripted.open.wait()
            if answer.drop:
                self.close_connection = True
                return
            content = answer.raw
            if content is None:
                whole = _completion(body, answer) if answer.status == 200 else answer.error
                content = json.dumps(whole).encode()
            headers = {"content-type": answer.content_type, **answer.headers}
            self._send(answer.status, content, headers)
        finally:
            self.scripted.leave()

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Stays silent."""


def _completion(body: Body, answer: Answer) -> Body:
    choice: Body = {"index": 0, "finish_reason": answer.finish_reason, **answer.choice}
    if "messages" in body:
        choice["message"] = {"role": "assistant", "content": answer.text, **answer.message}
    else:
        choice["text"] = answer.text
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    kind = "chat.completion" if "messages" in body else "text_completion"
    return {"id": "1", "object": kind, "model": body["model"], "choices": [choice], "usage": usage}
