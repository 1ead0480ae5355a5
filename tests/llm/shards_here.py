"""A Ray cluster's stand-in: it runs all shards in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from alignment.cli import UserError
from alignment.llm import ray_data


def run_shards_here(monkeypatch: pytest.MonkeyPatch, cpus: int = 2) -> list[list[str]]:
    """Puts the stand-in in Ray's place.

    Returns:
        The command lines of the shards, without `--shard`, as they come.
    """
    asked: list[list[str]] = []

    @contextmanager
    def cluster() -> Iterator[int]:
        yield cpus

    def run_shards(
        module: str, words: Sequence[str], output: str, shards: int, workers: int
    ) -> None:
        for number in range(1, shards + 1):
            asked.append([module, *words])
            ended = ray_data.run_shard(
                {"item": number},
                module=module,
                words=list(words),
                output=output,
                of=shards,
                folder=".",
            )
            if ended["error"]:
                raise UserError(ended["error"])

    monkeypatch.setattr(ray_data, "cluster", cluster)
    monkeypatch.setattr(ray_data, "run_shards", run_shards)
    return asked
