"""A server of the user's choice, started for a model and stopped after it."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alignment.cli import UserError

logger = logging.getLogger("alignment")

PATIENCE = 900.0
"""Seconds that a server may take to come up: large weights are read from slow disks."""
_LOOK = 0.25
_STOP = 30.0


@contextmanager
def serving(template: str, model: str | Path, log: Path) -> Iterator[str]:
    """Runs a server while the block does, and gives the address of its API.

    Args:
        template: The command; of its words `{model}` and `{port}` are replaced, the latter by a
            port that is free now.
        model: What it is to serve.
        log: File for what the server prints.

    Raises:
        UserError: The command cannot be run, ends, or does not answer in `PATIENCE` seconds.
    """
    port = _free_port()
    fields = {"{model}": str(model), "{port}": str(port)}
    words = [fields.get(word, word) for word in shlex.split(template)]
    logger.info("\n$ %s", shlex.join(words))
    with log.open("w", encoding="utf-8") as output:
        try:
            # A session of its own, so that its children end with it.
            server = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise UserError(f"`serve`: cannot run `{words[0]}`: {error.strerror}") from None
    # Outlives this process, whose end closes the pipe: no server stays behind after a SIGKILL.
    watch = ["sh", "-c", f"read -r _; kill -- -{server.pid} 2>/dev/null"]
    watchdog = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
    try:
        _wait(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(server)
        watchdog.kill()
        watchdog.communicate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise UserError(f"`serve`: the server ended with {server.returncode}; see {log}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            if error.code == 404:  # it is up, and has no such page
                return
        except OSError:
            pass
        time.sleep(_LOOK)
    raise UserError(f"`serve`: no answer on port {port} in {PATIENCE:.0f} seconds; see {log}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP)
            return
