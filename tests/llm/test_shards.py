"""Shards: which rows fall to one, what joining takes over, and how a job's caps are divided."""

import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.ledger import Call, Entry, Ledger
from alignment.llm.lock import locked
from alignment.llm.protocol import CallError, Reply, Request, Stopped
from alignment.llm.shards import Shard, join
from tests.data_builders.running import build, report
from tests.llm.shards_here import run_shards_here

SOURCE = {"provider": "p", "model": "m", "fingerprint": "f", "verb": "chat"}
MODEL = ("--model", f"program:{__name__}.louder")
ROWS: list[dict[str, Any]] = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)]

asked: Counter[str] = Counter()


def louder(request: Request) -> str:
    """Shouts the prompt, and counts how often it is asked for that."""
    prompt = str(request.prompt[-1]["content"])  # type: ignore[index]
    asked[prompt] += 1
    return prompt.upper()


@pytest.fixture(autouse=True)
def nothing_is_asked_yet():
    asked.clear()


def made(folder: Path, *words: object) -> list[dict[str, Any]]:
    return build(folder, "stronger_preferred", ROWS, *MODEL, *words)


def shard(folder: Path, which: str, *words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        made(folder, "--shard", which, *words)
    assert ended.value.code == 0


def test_every_row_falls_to_one_shard_and_keeps_its_place_and_name():
    rows = [(f"f:{i}", row) for i, row in enumerate(ROWS)]
    parts = [list(Shard(number, 4).rows(rows)) for number in range(1, 5)]
    assert sorted(named for part in parts for named in part) == sorted(rows)
    assert all(part == [named for named in rows if named in part] for part in parts)
    assert min(map(len, parts)) > 0


def test_rows_with_one_prompt_share_a_shard_so_that_no_call_is_made_in_two():
    rows = [(f"f:{i}", {"prompt": f"p{i % 5}", "response": str(i)}) for i in range(50)]
    for number in range(1, 5):
        prompts = Counter(row["prompt"] for _, row in Shard(number, 4).rows(rows))
        assert set(prompts.values()) <= {10}


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "a/b", "1/4/2", "-1/4"])
def test_what_names_no_shard_is_refused(tmp_path: Path, text: str):
    with pytest.raises(UserError, match=f"`shard` is {text}; it is K/N, with K from 1 to N"):
        made(tmp_path, "--shard", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shards", "0"), "`shards` is 0; it must be at least 1"),
        (("--workers", "0"), "`workers` is 0; it must be at least 1"),
        (("--engine", "ray", "--shard", "1/2"), "`engine: ray` runs all shards"),
        (("--engine", "ray", "--mode", "batch"), "`mode: batch` leaves the work to the provider"),
        (("--shard", "1/2", "--mode", "batch"), "`mode: batch` leaves the work to the provider"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, words: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        made(tmp_path, *words)


def test_a_shard_makes_its_calls_alone_and_leaves_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard(tmp_path, "2/3")
    mine = sum(1 for _ in Shard(2, 3).rows((row["prompt"], row) for row in ROWS))
    assert 0 < mine < len(ROWS)
    assert (sum(asked.values()), max(asked.values())) == (mine, 1)
    assert f"shard 2/3: kept {mine} of {mine} rows" in capsys.readouterr().out
    assert not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "out.jsonl.shards/2-of-3/out.jsonl.ledger").exists()


def test_a_shard_that_is_run_again_asks_nothing_and_neither_does_the_job(tmp_path: Path):
    for which in ("1/2", "2/2", "2/2"):
        shard(tmp_path, which)
    assert len(made(tmp_path)) == len(ROWS)
    assert asked == {row["prompt"]: 1 for row in ROWS}
    assert not (tmp_path / "out.jsonl.shards").exists()


def test_the_job_asks_what_no_shard_has_asked(tmp_path: Path):
    shard(tmp_path, "1/2")
    assert len(made(tmp_path)) == len(ROWS)
    assert asked == {row["prompt"]: 1 for row in ROWS}


def test_a_shard_finds_what_the_jobs_ledger_holds(tmp_path: Path):
    made(tmp_path, "--ledger", tmp_path / "all.ledger")
    with Ledger(tmp_path / "all.ledger") as ledger:
        ledger.checkpoint()
        for number in range(1, 4):
            shard(tmp_path, f"{number}/3", "--ledger", tmp_path / "all.ledger")
    assert asked == {row["prompt"]: 1 for row in ROWS}


def test_to_start_anew_is_to_forget_the_shards(tmp_path: Path):
    shard(tmp_path, "1/1")
    made(tmp_path, "--overwrite")
    assert asked == {row["prompt"]: 2 for row in ROWS}


def test_a_shard_that_still_runs_is_not_joined(tmp_path: Path):
    shard(tmp_path, "1/1")
    part = Shard(1, 1).file(tmp_path / "out.jsonl")
    with locked(part), pytest.raises(UserError, match=r"another job is writing .*1-of-1"):
        made(tmp_path)
    assert part.exists()


def test_what_a_shard_had_claimed_when_its_machine_died_is_asked_at_once(tmp_path: Path):
    """The claim of another machine would hold for a quarter of an hour."""
    shard(tmp_path, "1/1")
    (path,) = (tmp_path / "out.jsonl.shards").glob("*/*.ledger")
    with Ledger(path) as ledger:
        keys = [key for (key,) in ledger._db.execute("SELECT key FROM calls")]
        ledger._db.execute("DELETE FROM calls")
        owner = f"not-{socket.gethostname()}/1/1/x"
        rows = [(key, owner, 4e9) for key in keys]
        ledger._db.executemany("INSERT INTO claims VALUES (?, ?, ?)", rows)
    shard(tmp_path, "1/1")
    assert asked == {row["prompt"]: 2 for row in ROWS}


def entry(key: bytes, result: Reply | CallError) -> Entry:
    return Entry(key, SOURCE, Call(result, 0.5, 0.1, 1))


def test_joining_keeps_answers_before_failures_and_can_be_done_twice(tmp_path: Path):
    late = CallError("failed", "late")
    with Ledger(tmp_path / "part") as part:
        for key, result in ((b"a", late), (b"b", Reply("new")), (b"c", Reply("part"))):
            part.put(entry(key, result))
    with Ledger(tmp_path / "all") as whole:
        whole.put(entry(b"a", Reply("old")))
        whole.put(entry(b"b", late))
        for _ in range(2):
            whole.absorb(tmp_path / "part")
            assert [whole.get(key) for key in (b"a", b"b", b"c")] == [
                *map(Reply, ("old", "new", "part"))
            ]
            assert whole.spent() == 2.0  # the answer to b with the failure before it
            assert whole.totals().calls == 3


def test_a_damaged_shard_is_told_by_its_name(tmp_path: Path):
    shard(tmp_path, "1/1")
    (path,) = (tmp_path / "out.jsonl.shards").glob("*/*.ledger")
    path.write_bytes(b"no ledger " * 1000)
    with pytest.raises(UserError, match=r"cannot use the ledger .*1-of-1.*move the file away"):
        made(tmp_path)


def test_without_shards_there_is_nothing_to_join(tmp_path: Path):
    with Ledger() as ledger:
        join(tmp_path / "out.jsonl", ledger)
        assert ledger.totals().calls == 0


def test_on_a_cluster_the_shards_ask_and_the_job_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made(tmp_path / "one")
    asked.clear()
    commands = run_shards_here(monkeypatch)
    made(tmp_path / "ray", "--engine", "ray", "--shards", 3)
    assert len(commands) == 3
    assert commands[0][0] == "data_builders.stronger_preferred"
    assert not {"--engine", "--shards", "--overwrite"} & {*commands[0]}
    assert asked == {row["prompt"]: 1 for row in ROWS}
    for name in ("out.jsonl", "out.jsonl.report.json"):
        assert (tmp_path / "ray" / name).exists()
    bytes_of = [(tmp_path / which / "out.jsonl").read_bytes() for which in ("one", "ray")]
    assert bytes_of[0] == bytes_of[1]
    assert report(tmp_path / "ray")["usage"]["generator"]["reused"] == len(ROWS)
    made(tmp_path / "ray", "--engine", "ray", "--shards", 5, "--resume")
    assert asked == {row["prompt"]: 1 for row in ROWS}


def test_parquet_is_joined_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_shards_here(monkeypatch)
    files = [tmp_path / "one.parquet", tmp_path / "ray.parquet"]
    made_of = (("--engine", "local"), ("--engine", "ray", "--shards", "3"))
    for file, words in zip(files, made_of, strict=True):
        with pytest.raises(UserError, match="no such file"):  # `running.build` looks for JSON Lines
            made(tmp_path, *words, "--output", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_caps_of_the_job_are_divided_among_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """8 dollars for 4 shards, 60 requests a minute for the 2 at work at the same time."""
    commands = run_shards_here(monkeypatch, cpus=2)
    caps = ("--max-cost", 8, "--price", 1, 1, "--requests-per-minute", 6e5)
    made(tmp_path, "--engine", "ray", "--shards", 4, *caps)
    words = dict(zip(commands[0][1:], commands[0][2:], strict=False))
    assert (words["--max-cost"], words["--requests-per-minute"]) == ("2.0", "300000.0")


def test_no_shard_spends_what_is_left_to_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = run_shards_here(monkeypatch)
    with Ledger(tmp_path / "out.jsonl.ledger") as ledger:
        ledger.put(entry(b"earlier", Reply("answer")))
    with pytest.raises(Stopped, match="rows are missing"):
        made(tmp_path, "--engine", "ray", "--max-cost", 0.5, "--price", 1, 1)
    assert commands == []
    assert not asked


def test_what_a_shard_ends_with_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_shards_here(monkeypatch)
    words = ("--model", f"program:{__name__}.broken", "--engine", "ray")
    with pytest.raises(UserError, match=r"`.*broken` failed: ValueError: out of order"):
        build(tmp_path, "stronger_preferred", ROWS, *words)


def broken(request: Request) -> str:
    raise ValueError("out of order")


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'contrastive-alignment\[ray\]'"):
        made(tmp_path, "--engine", "ray")


def test_an_address_at_which_nobody_listens_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"no Ray cluster at {address} .*refused.*`RAY_ADDRESS`"):
        made(tmp_path, "--engine", "ray")


def test_a_dry_run_asks_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        made(tmp_path, "--engine", "ray", "--dry-run")
    assert "20 calls" in capsys.readouterr().out
    assert not asked
