"""Jobs in shards: each makes the calls of its rows, and one process then finds them all made.

A shard is the same command over the rows that fall to it, with a ledger of its own; so it may run
on another machine, be killed, and be run again alone. Joining copies the calls of all shards into
the job's ledger. The job then runs as it ever does and asks nobody, so that what it writes is what
one process would have written, whatever a builder makes of all rows together.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from alignment.llm.ledger import Ledger
from alignment.llm.lock import locked
from alignment.llm.rows import PROMPT_COLUMNS, Named, Row


class Shard(NamedTuple):
    """One of several parts of a job.

    Attributes:
        number: Which one, from 1.
        of: How many there are.
    """

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """The shard that `K/N` names.

        Raises:
            ValueError: It names none.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of:
            raise ValueError(f"`shard` is {text}; it is K/N, with K from 1 to N")
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def file(self, output: str | Path) -> Path:
        """What the shard writes in the place of the job's output."""
        return _folder(output) / f"{self.number}-of-{self.of}" / Path(output).name

    def rows(self, rows: Iterable[Named]) -> Iterator[Named]:
        """Its rows: those with equal prompts share a shard, so that no call is made in two."""
        return (named for named in rows if _hash(named[1]) % self.of == self.number - 1)


def join(output: str | Path, ledger: Ledger) -> None:
    """Copies the calls of all shards of a job into its ledger, and removes the shards.

    Args:
        output: Of the job.
        ledger: Of the job.

    Raises:
        UserError: A shard is still running, or a ledger cannot be used.
    """
    if not (parts := sorted(_folder(output).glob(f"*/{Path(output).name}.ledger"))):
        return
    for part in parts:
        with locked(part.with_suffix("")):
            ledger.absorb(part)
    ledger.checkpoint()  # on the disk, before the only other copy goes
    discard(output)


def discard(output: str | Path) -> None:
    """Removes the shards of a job with all that they hold."""
    shutil.rmtree(_folder(output), ignore_errors=True)


def _folder(output: str | Path) -> Path:
    return Path(f"{output}.shards")


def _hash(row: Row) -> int:
    prompt = [row[name] for name in PROMPT_COLUMNS if name in row]
    return zlib.crc32(json.dumps(prompt or row, sort_keys=True, default=str).encode())
