"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        level: `ok`; `warning` for what works, but not as one may think; `broken` for what does not.
        subject: What was looked at, in a word or two.
        told: What it is like.
        remedy: What to do about it; empty where all is well.
    """

    level: Level
    subject: str
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        """The finding on a line, its remedy on the next."""
        line = f"{self.level:<8} {self.subject}: {self.told}"
        return f"{line}\n         -> {self.remedy}" if self.remedy else line
