"""A whole comparison of reduced size: resumed, repeated, and told when it cannot be done."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from alignment.cli import UserError, parse
from alignment.commands.compare import Options, Task, _facts, compare, run_all
from alignment.comparison.methods import chosen

REDUCED = [
    *("--sft-steps", "40", "--train-prompts", "120", "--held-out-prompts", "20", "--steps", "4"),
    *("--jobs", "2"),
]


def options(*words: object) -> Options:
    return parse(Options, [*REDUCED, *map(str, words)], "alignment compare")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "`steps` is 0; it must be at least 1"),
        (["--seeds", "1", "1"], "it must name seeds from 0, each once"),
        (["--seeds", "-1"], "it must name seeds from 0, each once"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        options(*words)


def test_an_unknown_method_is_told_before_any_work(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean `apo_zero`"):
        compare(options("--output", tmp_path / "run", "--methods", "apozero"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "alignment compare --methods main"),
        (
            ("--methods", "main", "plain", "--seeds", "4", "5", "--training-free", "--jobs", "3"),
            "alignment compare --methods main plain --seeds 4 5 --training-free true",
        ),
        (("--steps", "7"), "alignment compare --methods main --steps 7"),
    ],
)
def test_the_page_names_the_command_that_makes_it_again(words: tuple[str, ...], told: str):
    assert _facts(parse(Options, list(words), "alignment compare"))["command"] == told


def numbers(folder: Path) -> dict[str, Any]:
    """What a run found, seconds and memory aside."""
    record = json.loads((folder / "evidence.json").read_text())
    for method in record["methods"].values():
        del method["seconds"], method["peak_bytes"]
    return {name: record[name] for name in ("start", "methods", "found", "claims")}


@pytest.mark.slow
def test_a_run_goes_on_for_other_methods_and_gives_the_same_numbers_anew(tmp_path: Path):
    words = ("--seeds", "3", "--output")
    first, second = tmp_path / "first", tmp_path / "second"
    compare(options(*words, first, "--methods", "dpo"))
    seed = first / "seed-3"
    written = (seed / "start/model.safetensors").stat().st_mtime_ns
    compare(options(*words, first, "--methods", "dpo", "cut", "conditional"))
    assert (seed / "start/model.safetensors").stat().st_mtime_ns == written
    found = numbers(first)
    assert set(found["methods"]) == {"dpo", "cut", "conditional"}
    assert "1.1" in found["found"]["cut"][0]
    compare(options(*words, second, "--methods", "cut", "conditional", "dpo"))
    assert numbers(second) == found
    page = (first / "evidence.md").read_text()
    assert "| cut | " in page


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told_with_its_log(tmp_path: Path):
    (tmp_path / "run/seed-0").mkdir(parents=True)
    (tmp_path / "run/seed-0/note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"seed 0: start and data: .*holds something else.*log"):
        compare(options("--seeds", "0", "--output", tmp_path / "run", "--methods", "dpo"))


def die(_: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("alignment.commands.compare.perform", die)
    with pytest.raises(UserError, match="process was killed, most likely for lack of memory"):
        run_all(options("--output", tmp_path, "--seeds", "0"), chosen(["dpo"]))


def alive_in(group: int) -> list[int]:
    """The processes of a group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.slow
def test_an_interrupted_run_ends_with_its_processes_and_says_how_to_go_on(tmp_path: Path):
    words = (*REDUCED, "--seeds", "0", "1", "--output", str(tmp_path), "--methods", "dpo")
    # Also where this test runs in the background, which has its children ignore interrupts.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hearing}; import runpy; runpy.run_module('alignment', run_name='__main__')"
    command = [sys.executable, "-c", code, "compare", *words]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        give_up = time.monotonic() + 300
        logs = [tmp_path / f"seed-{seed}.log" for seed in (0, 1)]  # of all that were started
        while not all(log.exists() for log in logs) and time.monotonic() < give_up:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert told.splitlines()[-1] == "error: interrupted; run the same command to go on"
    assert "Traceback" not in told
    give_up = time.monotonic() + 60  # they notice the end of the command, and end
    while alive_in(running.pid) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not alive_in(running.pid)
