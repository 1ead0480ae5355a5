"""Several processes compute the run of one process: DDP, and DeepSpeed where it is installed."""

import importlib.util
import json
import os
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from alignment.train import main
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainers.runs import lora, pair_rows

pytestmark = pytest.mark.slow

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data of which no step has an even number of pairs for every call."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny_model(num_hidden_layers=1).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, rows in (("train", pair_rows(13)), ("test", pair_rows(18)[13:])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def recipe(folder: Path, name: str, **changes: Any) -> list[str]:
    """Writes a recipe; two epochs of 13 pairs, 4 per step, the last step of an epoch with one."""
    settings = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "train.jsonl"),
        "eval_dataset_name": str(folder / "test.jsonl"),
        "eval_strategy": "epoch",
        "objective": "apo",
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": "all-linear",
        "use_cpu": True,
        "num_train_epochs": 2,
        "global_batch_size": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / name),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["-m", "alignment.train", "--config", str(path)]


def launch(folder: Path, command: list[str], **variables: str) -> None:
    """Runs a command with everything it caches below `folder`."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    caches = {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **quiet, **caches, **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def two_processes(folder: Path, command: list[str]) -> None:
    port = ["--master_port", str(free_port()), "--nproc_per_node", "2"]
    launch(folder, [sys.executable, "-m", "torch.distributed.run", *port, *command])


def deepspeed(folder: Path, command: list[str]) -> None:
    """Starts two processes under ZeRO-3, over gloo."""
    (folder / "deepspeed.json").write_text(
        json.dumps(
            {
                "zero_optimization": {
                    "stage": 3,
                    "stage3_gather_16bit_weights_on_model_save": True,
                },
                "bf16": {"enabled": False},
                "fp16": {"enabled": False},
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
                "zero_allow_untested_optimizer": True,
            }
        )
    )
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": str(folder / "deepspeed.json"),
            "zero3_init_flag": True,
        },
        "num_machines": 1,
        "num_processes": 2,
        "main_process_port": free_port(),
        "use_cpu": True,
    }
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(config))
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(folder / "accelerate.yaml"),
    ]
    launch(folder, [sys.executable, *launcher, *command], DS_ACCELERATOR="cpu")


def history(folder: Path, name: str, metric: str = "loss") -> list[float]:
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [entry[metric] for entry in map(json.loads, lines) if metric in entry]


def weights(folder: Path, name: str, file: str = "adapter_model.safetensors") -> Tensor:
    tensors = load_file(folder / name / file)
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def one_process(folder: Path, command: list[str]) -> None:
    """Runs in this process, which has loaded everything already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        main(command[2:])


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """The run of one process."""
    one_process(folder, recipe(folder, "one"))
    return folder


def assert_same_run(folder: Path, name: str, bound: float = 1e-6) -> None:
    assert len(history(folder, "one")) == 8
    for metric in ("loss", "eval_loss", "rewards/margins", "logps/chosen", "num_tokens"):
        expected = pytest.approx(history(folder, "one", metric), rel=bound, abs=bound)
        assert history(folder, name, metric) == expected, metric
    assert relative(weights(folder, name), weights(folder, "one")) < 10 * bound


def test_two_processes_compute_the_run_of_one(one: Path):
    """The last step of an epoch has one pair, so the second process computes a filler."""
    two_processes(one, recipe(one, "two"))
    assert_same_run(one, "two")


def test_two_processes_share_a_stored_reference_and_a_token_budget(one: Path):
    stored = {"precompute_ref_log_probs": True, "ref_cache_dir": str(one / "reference")}
    two_processes(one, recipe(one, "stored", max_tokens_per_batch=60, **stored))
    assert_same_run(one, "stored")


def test_two_nodes_with_a_disk_each_store_the_whole_reference(one: Path):
    """What one of them has stored before is a part that the other lacks."""
    changes = {"eval_dataset_name": None, "eval_strategy": "no"}
    stored = {"precompute_ref_log_probs": True, **changes}
    (one / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(5)))
    one_process(one, recipe(one, "whole", **changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", one / "disk-0")
        main(recipe(one, "part", **stored, dataset_name=str(one / "part.jsonl"))[2:])
    command, port = recipe(one, "nodes", **stored), str(free_port())
    with ThreadPoolExecutor() as pool:
        nodes = []
        for rank in ("0", "1"):
            address = ["--nnodes", "2", "--node_rank", rank, "--master_port", port]
            words = [sys.executable, "-m", "torch.distributed.run", *address, *command]
            disk = str(one / f"disk-{rank}")
            nodes.append(pool.submit(launch, one, words, HF_DATASETS_CACHE=disk))
    for node in nodes:
        node.result()
    assert history(one, "nodes") == pytest.approx(history(one, "whole"), abs=1e-6)
    for disk in ("disk-0", "disk-1"):
        (path,) = (one / disk / "reference").glob("*.sqlite")
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT count(*) FROM entries").fetchone() == (13,)


@needs_deepspeed
def test_an_adapter_under_zero3_computes_the_run_of_one_process(one: Path):
    deepspeed(one, recipe(one, "zero-3"))
    assert_same_run(one, "zero-3", 1e-5)


@needs_deepspeed
def test_a_whole_model_under_zero3_computes_the_run_of_one_process(one: Path):
    """The head is trained as well, so its weight must be whole in the backward pass, too."""
    changes = {"use_peft": False, "max_steps": 3, "eval_strategy": "no", "learning_rate": 0.01}
    one_process(one, recipe(one, "full", **changes))
    deepspeed(one, recipe(one, "full-zero-3", **changes))
    expected = pytest.approx(history(one, "full"), abs=1e-5)
    assert history(one, "full-zero-3") == expected
    found, whole = (weights(one, name, "model.safetensors") for name in ("full-zero-3", "full"))
    assert relative(found, whole) < 1e-5
    start = weights(one, "model", "model.safetensors")
    assert relative(whole, start) > 1e-4


@needs_deepspeed
def test_adapters_under_zero3_have_a_stored_reference_each(one: Path):
    """The weights are dealt out as they are loaded; what names a reference is all of them."""
    stored: dict[str, Any] = {"precompute_ref_log_probs": True, "use_peft": False, "max_steps": 1}
    stored |= {"ref_cache_dir": str(one / "references"), "eval_strategy": "no"}
    names = [f"learnt-{seed}" for seed in (1, 2)]
    words = []
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = tiny_model(num_hidden_layers=1)
        get_peft_model(model, lora(init_lora_weights=False)).save_pretrained(one / name)
        changes = {"adapter_name_or_path": str(one / name), **stored}
        words.append(recipe(one, f"from-{name}", **changes)[-1])
    deepspeed(one, ["-m", "tests.trainers.several", *words])
    assert len(list((one / "references").glob("*.sqlite"))) == 2
    for name in names:
        assert history(one, f"from-{name}") == pytest.approx([1.0], abs=1e-5)
