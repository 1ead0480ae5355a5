"""Shards on a Ray cluster of two workers, of which one is killed in the middle."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alignment.quickstart.world import prompts
from tests.data_builders.running import write

IN_FLIGHT = 16
"""Calls of a shard that a kill may cost: `--concurrency`."""


class Nodes(NamedTuple):
    """A cluster of a head without work and two nodes of one CPU."""

    cluster: Any
    workers: list[Any]
    folder: Path


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("MORTAL", str(tmp_path))
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "include_dashboard": False, **size}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        workers = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield Nodes(cluster, workers, tmp_path)
    finally:
        cluster.shutdown()


def start(folder: Path, name: str, *words: object) -> subprocess.Popen[str]:
    """Starts `alignment build clair` on `in.jsonl`, without the calls of earlier runs."""
    (folder / "calls").unlink(missing_ok=True)
    command = ["build", "clair", "--model", "program:tests.llm.mortal.revise"]
    command += ["--input", str(folder / "in.jsonl"), "--output", str(folder / name / "out.jsonl")]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "alignment", *command, *map(str, words)],
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def ended(job: subprocess.Popen[str]) -> None:
    _, errors = job.communicate(timeout=500)
    assert job.returncode == 0, errors


def rows(folder: Path, count: int) -> None:
    """Questions with a wrong answer; every fifth has none and is rejected."""
    asked = prompts("train", min(count, 2000), seed=0)
    several = (asked[index % len(asked)] for index in range(count))
    made = ({"prompt": p, "response": f"ant {i}"} for i, p in enumerate(several))
    given = (row if i % 5 else {"prompt": row["prompt"]} for i, row in enumerate(made))
    write(folder / "in.jsonl", list(given))


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split()


def assert_same(folder: Path, name: str) -> None:
    """The files of a run are those of the run `one`, and nothing of its shards is left."""
    for file in ("out.jsonl", "out.jsonl.rejects.jsonl"):
        assert (folder / name / file).read_bytes() == (folder / "one" / file).read_bytes(), file
    assert not (folder / name / "out.jsonl.shards").exists()


def assert_survives_a_kill(folder: Path, call: int, asked: int, *words: object) -> None:
    """A run whose worker dies at a call makes the same files; only calls in flight are repeated."""
    (folder / "dies_at").write_text(str(call))
    ended(start(folder, "killed", *words))
    assert not (folder / "dies_at").exists()
    assert asked <= len(calls(folder)) <= asked + IN_FLIGHT
    assert_same(folder, "killed")


@pytest.mark.slow
def test_a_cluster_makes_what_one_process_makes_also_where_a_worker_is_killed(nodes: Nodes):
    folder = nodes.folder
    rows(folder, 200)
    ended(start(folder, "one"))
    asked = len(calls(folder))
    assert asked == 160
    assert_survives_a_kill(folder, 10, asked, "--engine", "ray", "--shards", 8)
    assert len({*calls(folder)}) >= 3, "two workers, and one in the place of the dead"


@pytest.mark.slow
def test_a_row_that_kills_every_worker_ends_the_run_in_one_line(nodes: Nodes):
    folder = nodes.folder
    rows(folder, 2)
    (folder / "dies_at").write_text("1")
    (folder / "undying").touch()
    job = start(folder, "dead", "--engine", "ray", "--shards", 1)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 2
    assert "error: shard 1/1: its worker died 10 times; `--shard 1/1`" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert len((folder / "deaths").read_text().split()) == 10


@pytest.mark.long
def test_ten_thousand_rows_survive_a_killed_worker_and_a_killed_node(nodes: Nodes):
    folder = nodes.folder
    rows(folder, 10_000)
    ended(start(folder, "one"))
    asked = len(calls(folder))
    shards = ("--engine", "ray", "--shards", 16)
    ended(start(folder, "whole", *shards))
    assert len(calls(folder)) == asked
    assert_same(folder, "whole")
    assert_survives_a_kill(folder, 200, asked, *shards)
    job = start(folder, "lost", *shards)
    while not (folder / "calls").exists() or len(calls(folder)) < asked // 4:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    nodes.cluster.remove_node(nodes.workers[0], allow_graceful=False)
    ended(job)
    assert_same(folder, "lost")
    assert asked <= len(calls(folder)) <= asked + IN_FLIGHT
