"""Faults planted in a run as a user starts it: each ends it in one line with the remedy."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from alignment.launch import ROOT
from tests.tiny import save_tiny, tiny_tokenizer
from tests.trainers.runs import pair_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", num_hidden_layers=1)


def recipe(folder: Path, **changes: Any) -> list[str]:
    """Four steps with a checkpoint after each."""
    content = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(rows(folder / "pairs.jsonl", 12)),
        "objective": "apo",
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": "all-linear",
        "use_cpu": True,
        "max_steps": 4,
        "global_batch_size": 4,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / "out"),
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path)]


def rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(count)))
    return path


def error_of(folder: Path, words: Sequence[str]) -> str:
    """The line that a command ends with; nothing else may tell of the error."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    caches = {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **quiet, **caches},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, f"{done.stdout}\n{done.stderr}"[-6000:]
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "alignment", "train", *words]


@pytest.mark.parametrize("frozen", [False, True], ids=["policy", "reference"])
def test_a_weight_that_is_no_number_is_named(frozen: bool, model: Path, tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.model.layers[0].mlp.up_proj.weight.data[3, 5] = math.nan
    broken.save_pretrained(tmp_path / "broken" if frozen else model)
    named = {"ref_model_name_or_path": str(tmp_path / "broken")} if frozen else {}
    line = error_of(tmp_path, command(*recipe(tmp_path, **named)))
    assert "mlp.up_proj" in line
    assert f"of the {'reference' if frozen else 'model'} holds NaN or infinity" in line
    assert line.endswith("fetch or save the model anew")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_processes_with_different_data_are_refused(model: Path, tmp_path: Path):
    """As where each machine has a disk of its own, and one of them an older file."""
    for rank, count in enumerate((12, 14)):
        (tmp_path / f"disk-{rank}").mkdir()
        rows(tmp_path / f"disk-{rank}" / "pairs.jsonl", count)
    start = tmp_path / "start.py"
    start.write_text(
        "import os, sys\n"
        "os.chdir('disk-' + os.environ['RANK'])\n"
        "os.environ['HF_DATASETS_CACHE'] = os.path.abspath('cache')\n"
        "from alignment.cli import run\n"
        "from alignment.train import main\n"
        "run(main, sys.argv[1:])\n"
    )
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    words = recipe(tmp_path, dataset_name="pairs.jsonl")
    done = subprocess.run(
        [sys.executable, *launcher, "--rdzv-backend", "c10d", str(start), *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    lines = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    (line,) = lines
    assert "process 1 has other training data (14 groups) than process 0 (12 groups)" in line
    assert "where every node reads the same" in line


def can_mount() -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a namespace to mount a small disk in")
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(model: Path, tmp_path: Path):
    """So small a disk holds some checkpoints and not four."""
    out = tmp_path / "out"
    out.mkdir()
    words = command(*recipe(tmp_path))
    listing = f"ls {out} > {tmp_path}/left; ls -A {out}/.saving >> {tmp_path}/left 2>/dev/null"
    script = f'mount -t tmpfs -o size=300k tmpfs {out}; "$@"; status=$?; {listing}; exit $status'
    line = error_of(
        tmp_path,
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words],
    )
    left = (tmp_path / "left").read_text().split()
    saved = sorted(name for name in left if name.startswith("checkpoint-"))
    assert 0 < len(saved) < 4
    assert "failed: the disk is full" in line
    assert f"`--resume_from_checkpoint {out / saved[-1]}`" in line
    assert f"checkpoint-{len(saved)}" == saved[-1]
