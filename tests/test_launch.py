"""Several processes are started by one command, and end as one: one line, one exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment import launch
from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.launch import (
    Options,
    accelerate_words,
    asks_for_cpu,
    command_line,
    configuration,
    tell,
)

ROOT = Path(__file__).resolve().parent.parent
RECIPE = str(ROOT / "recipes/apo/smoke.yaml")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that accelerate would have been started with."""
    found: list[list[str]] = []
    monkeypatch.setattr(launch, "_start", found.append)
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "1"})
    return found


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def following(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        launch.main(list(words))
    return str(caught.value)


# ---- What is started ----


def test_a_name_is_a_file_beside_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert configuration("zero3") == Path("recipes/accelerate/zero3.yaml")
    monkeypatch.chdir(tmp_path)
    assert configuration("zero3") == ROOT / "recipes/accelerate/zero3.yaml"
    own = tmp_path / "recipes/accelerate/zero3.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("distributed_type: DEEPSPEED\n")
    assert configuration("zero3") == Path("recipes/accelerate/zero3.yaml")
    assert configuration(str(own)) == own
    with pytest.raises(UserError, match="unknown launcher `zero4`; did you mean `zero"):
        configuration("zero4")
    with pytest.raises(UserError, match=r"no such file: absent\.yaml"):
        configuration("absent.yaml")


def test_all_gpus_of_the_machine_are_used_unless_fewer_are_asked_for(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    gpus(monkeypatch, 8)
    launch.main(["--launcher", "zero3", "--config", RECIPE, "--use_cpu", "false"])
    launch.main(["--launcher=ddp", "--gpus", "2", "--learning_rate", "1e-5"])
    assert [following(words, "--num_processes") for words in started] == ["8", "2"]
    assert started[0][-4:] == ["--config", RECIPE, "--use_cpu", "false"]
    assert started[1][-4:] == ["-m", "alignment.train", "--learning_rate", "1e-5"]
    assert "DS_ACCELERATOR" not in os.environ


def test_a_recipe_for_the_cpu_takes_processes(started: list[list[str]]):
    launch.main(["--launcher", "zero3", "--processes", "2", "--config", RECIPE])
    assert following(started[0], "--num_processes") == "2"
    assert following(started[0], "--main_process_port") == "0"
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_each_of_several_machines_is_told_its_rank(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    gpus(monkeypatch, 8)
    place = ["--nodes", "2", "--node_rank", "1", "--main_address", "10.0.0.1"]
    launch.main(["--launcher", "multi_node", *place])
    assert following(started[0], "--num_processes") == "16"
    assert following(started[0], "--num_machines") == "2"
    assert following(started[0], "--machine_rank") == "1"
    assert following(started[0], "--main_process_ip") == "10.0.0.1"
    assert following(started[0], "--main_process_port") == "29500"


def test_processes_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    words = accelerate_words(Options(launcher="ddp"), Path("ddp.yaml"), 2, on_cpu=True)
    assert following(words, "--num_cpu_threads_per_process") == "4"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--config", RECIPE], True),
        ([f"--config={RECIPE}"], True),
        (["--config", RECIPE, "--use_cpu", "false"], False),
        (["--use_cpu"], True),
        (["--use_cpu", "--max_steps", "1"], True),
        (["--use-cpu=true"], True),
    ],
)
def test_the_cpu_is_asked_for_as_training_reads_it(words: list[str], expected: bool):
    assert asks_for_cpu(words) is expected


def test_the_command_line_hands_a_launcher_to_this_module(started: list[list[str]]):
    dispatch(["train", "--launcher", "single", "--config", RECIPE])
    assert following(started[0], "--num_processes") == "1"


# ---- What the user can mend ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "`--gpus` is 0; it must be at least 1"),
        (["--gpus", "2", "--processes", "2"], "exclude each other"),
        (["--nodes", "2", "--node_rank", "2"], "it runs from 0 to 1"),
        (["--nodes", "2"], "need `--main_address`"),
        (["--gpus", "8"], "`--gpus 8` is asked for, and there are 4 to use"),
        (["--gpus", "2", "--use_cpu"], "`--gpus 2` is asked for, and there are 0 to use"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(
    words: list[str], message: str, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    gpus(monkeypatch, 4)
    assert message in refusal("--launcher", "ddp", *words)
    assert started == []


def test_engines_that_do_not_fit_the_machine_are_refused(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    gpus(monkeypatch, 0)
    assert "there is no GPU to use: say how many `--processes`" in refusal("--launcher", "ddp")
    assert "does not do on a CPU: take zero3" in refusal(
        "--launcher", "fsdp2", "--processes", "2", "--use_cpu", "true"
    )
    gpus(monkeypatch, 2)
    assert "starts one process, more are wanted" in refusal("--launcher", "single", "--gpus", "2")
    assert started == []


# ---- How it ends ----


def failed(code: int, message: Any = "", rank: int = 1) -> UserError:
    with pytest.raises(UserError) as caught:
        launch._end(code, message, rank)
    return caught.value


def test_the_first_process_that_failed_is_told_with_its_exit_code():
    told = failed(2, "no such file: pairs.jsonl")
    assert (str(told), told.status) == ("no such file: pairs.jsonl [rank 1]", 2)
    told = failed(1)
    assert (str(told), told.status) == (
        "rank 1: it failed with exit code 1; its own report stands above",
        1,
    )
    told = failed(-signal.SIGKILL)
    assert "ended by SIGKILL, which is what a machine out of memory does" in str(told)
    assert told.status == 137


def test_a_process_leaves_its_error_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    tell("started by accelerate itself", 2)
    assert capsys.readouterr().err == "error: started by accelerate itself\n"
    monkeypatch.setenv("ALIGNMENT_LAUNCHED", "1")
    tell("the data is empty", 2)
    assert capsys.readouterr().err == ""
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(file))
    assert failure.message == "the data is empty"
    assert json.loads(file.read_text())["timestamp"] > 0


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_an_interruption_is_told_once(
    rank: str,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("ALIGNMENT_LAUNCHED", "1")
    monkeypatch.setenv("RANK", rank)
    tell("interrupted", 130)
    assert capsys.readouterr().err.count("\n") == lines
    assert not (tmp_path / "error.json").exists()


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_a_process_that_lost_its_peers_waits_for_the_launcher(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    waited: list[float] = []
    monkeypatch.setattr(launch, "time", SimpleNamespace(sleep=waited.append))

    def lost(argv: list[str]) -> None:
        raise kind(argv[0])

    monkeypatch.setenv("ALIGNMENT_LAUNCHED", "1")
    with pytest.raises(kind):
        launch.supervised(lost)(["Connection closed by peer [127.0.0.1]"])
    assert len(waited) == 1
    with pytest.raises(kind):
        launch.supervised(lost)(["shapes do not fit"])
    assert len(waited) == 1


ENDING = """
import atexit, sys
from alignment.cli import leave

class Kept:
    def __del__(self):
        sys.stderr.write("taken down")

kept = Kept()
atexit.register(sys.stderr.write, "handled, ")
sys.stdout.write("written")
leave(3)
"""


@pytest.mark.parametrize(("processes", "said"), [("1", "handled, taken down"), ("2", "handled, ")])
def test_a_process_of_several_ends_while_its_interpreter_is_up(processes: str, said: str):
    """A thread of gloo that lets go of a tensor later would abort it."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING],
        cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": processes},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "written", said)


@pytest.mark.slow
def test_a_fault_that_all_processes_meet_is_told_in_one_line(tmp_path: Path, model_dir: Path):
    words = ["--launcher", "ddp", "--processes", "2", "--config", RECIPE]
    words += ["--model_name_or_path", str(model_dir), "--dataset_name", "absent.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "alignment", "train", *words, "--output_dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: no such file: absent.jsonl [rank ")
    assert "Traceback" not in done.stderr


def test_the_command_line_is_the_one_typed_without_tokens(monkeypatch: pytest.MonkeyPatch):
    words = ["--hub_token", "hf_secret", "--hub-token=hf_secret", "--seed", "1"]
    told = command_line(words)
    assert told == "alignment train --hub_token '***' '--hub-token=***' --seed 1"
    monkeypatch.setenv("ALIGNMENT_LAUNCHED", "alignment train --launcher zero3")
    assert command_line(["--seed", "1"]) == "alignment train --launcher zero3"
