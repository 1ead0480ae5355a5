"""Five methods give the same numbers on one process, under DDP, ZeRO-2 and ZeRO-3, and resume."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignment.launch import ROOT, Options, accelerate_words, configuration
from alignment.train import build_trainer, parse_recipe
from alignment.trainers.checkpoints import damage
from tests.tiny import save_tiny
from tests.trainers.runs import scored, whole_batch

pytestmark = pytest.mark.slow

LOSS, DISTANCE = 1e-5, 1e-4
"""Largest difference of a loss, and of final adapters as a share of the distance travelled."""

STEPS, HALF = 10, 5
DATA = ROOT / "recipes" / "data"
ADAPTER = "adapter_model.safetensors"


class Method(NamedTuple):
    """What a recipe says of a method."""

    data: str
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed


METHODS = {
    "apo": Method("pairs"),
    "nca": Method("groups"),
    "cut": Method("judgments"),
    "cpo": Method("pairs"),
    "distillm2": Method("pairs", {"teacher_model_name_or_path": "teacher"}),
}
ENGINES = ("ddp", "zero2", "zero3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a teacher of one layer."""
    folder = tmp_path_factory.mktemp("numbers")
    save_tiny(folder / "model", num_hidden_layers=1)
    save_tiny(folder / "teacher", num_hidden_layers=1, seed=1)
    return folder


def recipe(folder: Path, name: str, method: str, **changes: Any) -> str:
    """Ten steps of 5 of 16 groups: an epoch's last step has one group, so a process idles."""
    data, settings = METHODS[method]
    content = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(DATA / f"{data}.jsonl"),
        "objective": method,
        **{key: str(folder / value) for key, value in settings.items()},
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": "all-linear",
        "use_cpu": True,
        "max_steps": STEPS,
        "global_batch_size": 5,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / name),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def recipes(folder: Path, engine: str) -> list[str]:
    """One of each method; the first is saved half way and gone on with from there."""
    saved = {"save_strategy": "steps", "save_steps": HALF}
    probe = {"probe_steps": HALF, "probe_prompts": 2, "probe_max_new_tokens": 4}
    found = [recipe(folder, f"{engine}-{name}", name) for name in METHODS]
    found[0] = recipe(folder, f"{engine}-apo", "apo", **saved, **probe)
    last = str(folder / f"{engine}-apo" / f"checkpoint-{HALF}")
    resumed = recipe(folder, f"{engine}-resumed", "apo", resume_from_checkpoint=last)
    return [*found, resumed]


def launch(folder: Path, engine: str) -> None:
    """Trains by all recipes in two processes of an engine."""
    words = accelerate_words(Options(launcher=engine), configuration(engine), 2, on_cpu=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", *words[:-1]]
    variables = {
        **{"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
        **{"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)},
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        [*command, "tests.trainers.several", *recipes(folder, engine)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """All methods on one process, and the adapters they begin with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        for path in recipes(folder, "one"):
            trainer = build_trainer(parse_recipe(["--config", path]))
            name = Path(trainer.args.output_dir).name.removeprefix("one-")
            trainer.save_model(str(folder / f"start-{name}"))
            trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
            trainer.save_model()
    return folder


@pytest.fixture(scope="module")
def several(one: Path) -> Callable[[str], Path]:
    """Starts an engine once, when the first test asks for it."""
    started: set[str] = set()

    def start(engine: str) -> Path:
        if engine != "ddp" and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("needs the extra `deepspeed`")
        if engine not in started:
            started.add(engine)
            launch(one, engine)
        return one

    return start


def logged(folder: Path, name: str, metric: str = "loss") -> list[float]:
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [entry[metric] for entry in map(json.loads, lines) if metric in entry]


def weights(folder: Path) -> Tensor:
    tensors = load_file(folder / ADAPTER)
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_numbers_of_one(
    engine: str, method: str, several: Callable[[str], Path]
):
    folder = several(engine)
    name, expected = f"{engine}-{method}", logged(folder, f"one-{method}")
    found = logged(folder, name)
    assert len(expected) == STEPS
    difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    start, end = weights(folder / f"start-{method}"), weights(folder / f"one-{method}")
    travelled = float((end - start).norm())
    away = float((weights(folder / name) - end).norm()) / travelled
    sys.stdout.write(
        f"{name}: losses differ by {difference:.1e}, adapters by {away:.1e} of {travelled:.2g}\n"
    )
    assert difference < LOSS
    assert travelled > 1e-3
    assert away < DISTANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_the_probe_sees_the_answers_of_one_process(engine: str, several: Callable[[str], Path]):
    folder = several(engine)
    for metric in ("probe/stop_rate", "probe/length", "probe/repetition"):
        found, expected = (logged(folder, f"{name}-apo", metric) for name in (engine, "one"))
        assert len(expected) == 3
        assert found == expected


@pytest.mark.parametrize("engine", ["one", *ENGINES])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    engine: str, one: Path, several: Callable[[str], Path]
):
    folder = one if engine == "one" else several(engine)
    assert logged(folder, f"{engine}-resumed") == logged(folder, f"{engine}-apo")[HALF:]
    whole, resumed = (folder / f"{engine}-{name}" / ADAPTER for name in ("apo", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_saves_is_whole_and_reloads_on_one_process(
    engine: str, several: Callable[[str], Path]
):
    folder = several(engine)
    for step in (HALF, STEPS):
        assert damage(folder / f"{engine}-apo" / f"checkpoint-{step}") is None
    words = ["--config", recipe(folder, "reader", "apo")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        trainer = build_trainer(parse_recipe(words))
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(4)))
    found, expected = (
        scored(PeftModel.from_pretrained(base(folder), folder / f"{name}-apo"), batch)
        for name in (engine, "one")
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, scored(base(folder), batch), atol=1e-3)


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "model")
