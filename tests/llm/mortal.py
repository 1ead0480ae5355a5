"""A program as reviser that counts its calls in a file and may take its process with it.

Workers of a cluster find it by the variable `MORTAL`, which names a folder.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path

from alignment.llm.protocol import Request
from alignment.quickstart.world import revise as answer

_calls = count(1)


def revise(request: Request) -> str:
    """The right answer; where the file `dies_at` holds the number of this call, death.

    Once, and then the file is gone; again and again beside a file `undying`.
    """
    folder = Path(os.environ["MORTAL"])
    mark = folder / "dies_at"
    if next(_calls) == _read(mark):
        if (folder / "undying").exists():
            with (folder / "deaths").open("a") as file:
                file.write("one\n")
        else:
            mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "calls").open("ab", buffering=0) as file:
        file.write(f"{os.getpid()}\n".encode())
    return answer(request)


def _read(mark: Path) -> int | None:
    try:
        return int(mark.read_text())
    except FileNotFoundError:
        return None
