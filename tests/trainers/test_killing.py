"""A run that is killed at any moment and resumed ends with the bits of an uninterrupted one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.trainers.checkpoints import checkpoints, damage
from tests.conftest import ROOT
from tests.tiny import save_tiny
from tests.trainers.killing import STAGES, moments

DATA = ROOT / "recipes" / "data" / "pairs.jsonl"
STEPS, EVERY = 20, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    save_tiny(folder / "model", num_hidden_layers=1)
    save_tiny(folder / "teacher", num_hidden_layers=1, seed=1)
    return folder


def recipe(folder: Path, name: str) -> Path:
    """An objective with a state, and dropout, so that every part of a checkpoint matters."""
    content: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "teacher_model_name_or_path": str(folder / "teacher"),
        "dataset_name": str(DATA),
        "eval_dataset_name": str(DATA),
        "objective": "distillm2",
        "objective_kwargs": {"anchor_steps": 12},
        "use_peft": True,
        "lora_r": 4,
        "lora_dropout": 0.1,
        "disable_dropout": False,
        "lora_target_modules": "all-linear",
        "use_cpu": True,
        "max_steps": STEPS,
        "global_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": EVERY,
        "save_strategy": "steps",
        "save_steps": EVERY,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def killed(folder: Path, name: str, seed: int, kills: int) -> list[str]:
    """Runs a recipe to its end through a number of kills; returns the lines about them."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    caches = {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    words = ["-m", "tests.trainers.killing", str(recipe(folder, name)), str(seed), str(kills)]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **quiet, **caches},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]
    return [line for line in done.stderr.splitlines() if line.startswith("seed ")]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    killed(folder, "whole", 0, 0)
    return folder / "whole"


def logged(folder: Path) -> list[dict[str, Any]]:
    """What was logged but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row or "eval_loss" in row]
    timed = ("_runtime", "_per_second")
    return [{name: row[name] for name in row if not name.endswith(timed)} for row in rows]


@pytest.mark.parametrize("kills", [3, 10])
def test_moments_fall_in_parts_of_the_run_and_in_every_stage(kills: int):
    for seed in range(20):
        found = moments(seed, kills, STEPS, EVERY)
        assert {moment.stage for moment in found} == set(STAGES)
        steps = [moment.step for moment in found]
        assert steps == sorted(steps)
        assert all(0 <= step <= STEPS for step in steps)


@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        pytest.param(0, 3, marks=pytest.mark.slow),
        pytest.param(1, 10, marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_killed_and_resumed_ends_as_the_uninterrupted_one(
    seed: int,
    kills: int,
    whole: Path,
    folder: Path,
):
    lines = killed(folder, f"killed-{seed}", seed, kills)
    sys.stdout.write("\n".join(lines) + "\n")
    assert len(lines) == kills
    found = folder / f"killed-{seed}"
    for name in ("adapter_model.safetensors", f"checkpoint-{STEPS}/optimizer.pt"):
        assert (found / name).read_bytes() == (whole / name).read_bytes(), name
    assert logged(found) == logged(whole)
    assert [path.name for path in checkpoints(found)] == ["checkpoint-20", "checkpoint-18"]
    assert all(damage(path) is None for path in checkpoints(found))
    hidden = [path.name for path in found.iterdir() if path.name.startswith(".")]
    assert hidden == []
