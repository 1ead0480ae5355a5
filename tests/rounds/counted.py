"""The critics of the small world, with a record of every request: `ASKED` names its file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from alignment.llm.protocol import Request
from alignment.quickstart import critics, world

ASKED = "ALIGNMENT_TEST_ASKED"


def note(text: str) -> None:
    """Adds a line to the record, which survives what kills this process."""
    with Path(os.environ[ASKED]).open("a") as file:
        file.write(text + "\n")


def _noted(request: Request) -> Request:
    note(hashlib.sha256(request.canonical()).hexdigest())
    return request


def criticise(request: Request) -> str:
    """As the world's critic, but for a failed call in the place of every tenth judgment."""
    words = critics.criticise(_noted(request))
    return words if request.draw() % 10 else "$ERROR$"


def revise(request: Request) -> str:
    return world.revise(_noted(request))


def rate(request: Request) -> str:
    return critics.rate(_noted(request))


def judge(request: Request) -> str:
    return world.judge(_noted(request))
