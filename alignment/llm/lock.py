"""One job for one output."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.cli import UserError

_POLL = 0.2
"""Seconds between two looks at a lock."""


@contextmanager
def locked(output: str | Path, patience: float = 0.0) -> Iterator[None]:
    """Keeps other jobs from writing an output while the block runs.

    The lock is on `<output>.lock` and ends with the process, however that ends.

    Args:
        output: The file that the job writes.
        patience: Seconds that another job has to end.

    Raises:
        UserError: Another job is writing it.
    """
    path = Path(f"{output}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    while (descriptor := _acquire(path)) is None and time.monotonic() < until:
        time.sleep(_POLL)
    if descriptor is None:
        raise UserError(f"another job is writing {output}; wait for it, or name another output")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The job before may have removed the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
