"""A scripted provider of batches in OpenAI's format: files, batches, and what goes wrong there."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.llm.server import listening

Line = dict[str, Any]


def answered(line: Line, text: str) -> Line:
    """The line of an output file that answers a line of an input file."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return with_status(line, 200, {"choices": [choice], "usage": usage})


def with_status(line: Line, status: int, body: Any) -> Line:
    """A line with any status; those other than 200 stand in the file of errors."""
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}


def unanswered(line: Line, code: str = "batch_expired") -> Line:
    """The line of a call that was not made."""
    error = {"code": code, "message": "not executed in time"}
    return {"id": "b", "custom_id": line["custom_id"], "response": None, "error": error}


def echo(line: Line) -> Line:
    """Answers with the prompt."""
    return answered(line, "re: " + line["body"]["messages"][-1]["content"])


@dataclass
class Provider:
    """The provider's address, how it behaves, and what it was sent.

    Attributes:
        answer: The line for each call, None for a call that is left out of all files.
        polls: How often a batch is in progress before it has ended.
        ends: How the batches end, in order, the last for ever.
        errors: Of a batch that failed.
        content_type: Of everything.
        trouble: `METHOD path` -> statuses to answer with before all is well; 0 drops the
            connection after the request was carried out.
        lines: Of each batch, in the order of creation.
        batches: All of them, by id.
        requests: `METHOD path` of everything received.
    """

    answer: Callable[[Line], Line | None] = echo
    polls: int = 1
    ends: list[str] = field(default_factory=lambda: ["completed"])
    errors: list[dict[str, Any]] = field(default_factory=list)
    trouble: dict[str, list[int]] = field(default_factory=dict)
    content_type: str = "application/json"
    url: str = ""
    lines: list[list[Line]] = field(default_factory=list)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def upload(self, content: bytes) -> Line:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {"id": name, "object": "file", "bytes": len(content), "created_at": 0}

    def create(self, body: Mapping[str, Any]) -> Line:
        index = len(self.lines)
        self.lines.append(
            [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        )
        batch = {
            **body,
            **{"id": f"batch-{index}", "object": "batch", "status": "validating"},
            **{"created_at": 0, "errors": None, "output_file_id": None, "error_file_id": None},
        }
        self.batches[batch["id"]] = batch
        return batch

    def look(self, name: str) -> Line | None:
        """A batch, one step further."""
        batch = self.batches.get(name)
        if batch is None:
            return None
        self.looks[name] = self.looks.get(name, 0) + 1
        if self.looks[name] <= self.polls or batch["status"] not in ("validating", "in_progress"):
            batch["status"] = "in_progress" if batch["status"] == "validating" else batch["status"]
            return batch
        index = int(name.partition("-")[2])
        batch["status"] = self.ends[min(index, len(self.ends) - 1)]
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return batch
        made = [line for line in map(self.answer, self.lines[index]) if line is not None]
        random.Random(index).shuffle(made)  # the order of the input is not kept
        good = [line for line in made if (line["response"] or {}).get("status_code") == 200]
        for field_name, rows in (
            ("output_file_id", good),
            ("error_file_id", [line for line in made if line not in good]),
        ):
            if rows:
                content = "".join(json.dumps(row) + "\n" for row in rows).encode()
                batch[field_name] = self.upload(content)["id"]
        return batch


@contextmanager
def serve_batches(script: Provider | None = None) -> Iterator[Provider]:
    """Runs a provider until the block ends."""
    provider = script or Provider()

    class Handler(_Handler):
        scripted = provider

    with listening(Handler) as provider.url:
        yield provider


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    scripted: Provider

    def do_GET(self) -> None:
        self._serve("GET", b"")

    def do_POST(self) -> None:
        self._serve("POST", self.rfile.read(int(self.headers.get("content-length", 0))))

    def _serve(self, method: str, content: bytes) -> None:
        provider = self.scripted
        path = self.path.partition("?")[0].removeprefix("/v1")
        what = f"{method} /{path.split('/')[1]}"
        with provider.lock:
            provider.requests.append(f"{method} {path}")
            trouble = provider.trouble.get(what)
            status = trouble.pop(0) if trouble else None
            if status:
                self._send(status, json.dumps({"error": {"message": "trouble"}}).encode())
                return
            made = self._carry_out(method, path, content)
            if status == 0:
                self.close_connection = True
                return
            if made is None:
                self._send(404, b'{"error": {"message": "not found"}}')
            else:
                self._send(200, made if isinstance(made, bytes) else json.dumps(made).encode())

    def _carry_out(self, method: str, path: str, content: bytes) -> Any:
        provider = self.scripted
        parts = path.strip("/").split("/")
        if (method, path) == ("POST", "/files"):
            head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
            form = message_from_bytes(head + content).get_payload()
            named = {part.get_param("name", header="content-disposition"): part for part in form}  # type: ignore[union-attr]
            if named["purpose"].get_payload() != "batch":  # type: ignore[union-attr]
                return None
            return provider.upload(named["file"].get_payload(decode=True))  # type: ignore[union-attr,arg-type]
        if (method, path) == ("POST", "/batches"):
            return provider.create(json.loads(content))
        if (method, path) == ("GET", "/batches"):
            newest = [*reversed(provider.batches.values())]
            return {"object": "list", "data": newest, "has_more": False}
        if method == "GET" and parts[0] == "batches":
            return provider.look(parts[1])
        if method == "GET" and parts[0] == "files" and parts[-1] == "content":
            return provider.files.get(parts[1])
        return None

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", self.scripted.content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Stays silent."""
