"""FSDP2: a sharded model scores and learns as a whole one.

Accelerate enters FSDP on GPUs only, so on a CPU torch's own `fully_shard` is called directly, over
gloo; the whole path is a test for a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from peft import get_peft_model
from torch import Tensor, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from alignment.core.packing import Layout, PackedBatch, TokenGroup, pack
from alignment.core.scoring import add_scored_forward, policy_logps
from tests.tiny import save_tiny, tiny_model
from tests.trainers.runs import lora, pair_rows

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    (trained, kind, layout)
    for trained in ("full", "lora")
    for kind in ("root", "head")
    for layout in ("ragged", "plain")
]


def model_of(trained: str) -> Any:
    """A model of two layers, its head trained with it or frozen below an adapter."""
    torch.manual_seed(0)
    model: Any = tiny_model()
    add_scored_forward(model)
    return get_peft_model(model, lora(init_lora_weights=False)) if trained == "lora" else model


def batch_of(layout: Layout) -> PackedBatch:
    groups = [
        TokenGroup.of([[5, 6, 7], [5, 6, 7]], [[8, 9, 2], [10, 2]], role=[1, -1]),
        TokenGroup.of([[11, 12], [11, 12]], [[13, 2], [14, 15, 16, 2]], role=[1, -1]),
    ]
    return pack(groups, layout, 0)


def learn(model: nn.Module, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs, and the gradients of what trains."""
    logps = policy_logps(model, batch)
    (logps * torch.arange(1.0, len(logps) + 1)).sum().backward()
    return logps.detach(), {
        name: whole(weight.grad)
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(model: Any, kind: str) -> None:
    """Every layer by itself, and the head with the rest or by itself as well."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    for layer in base.model.layers:
        fully_shard(layer)
    if kind == "head":
        fully_shard(base.get_output_embeddings())
    fully_shard(model)


def compare(rank: int, meet: str) -> None:
    """What one of two processes finds, for all cases."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    try:
        for trained, kind, layout in CASES:
            batch = batch_of(layout)  # type: ignore[arg-type]
            expected, gradients = learn(model_of(trained), batch)
            model = model_of(trained)
            shard(model, kind)
            found, sharded = learn(model, batch)
            case = f"{trained}, {kind}, {layout}"
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, msg=case)
            assert sharded.keys() == gradients.keys(), case
            assert ("lm_head.weight" in sharded) is (trained == "full"), case
            for name, gradient in gradients.items():
                bound = 1e-5 * float(gradient.abs().max())
                difference = float((sharded[name] - gradient).abs().max())
                assert difference <= bound, f"{case}: {name}: {difference} > {bound}"
            assert all(isinstance(weight, DTensor) for weight in model.parameters()), case
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_model_sharded_over_two_processes_scores_and_learns_as_a_whole_one(tmp_path: Path):
    """The head is used whole in forward and backward, trained or frozen, wherever it is sharded."""
    multiprocessing.spawn(compare, (str(tmp_path / "meet"),), nprocs=2)


@pytest.mark.gpu
def test_fsdp2_through_accelerate_computes_the_run_of_one_gpu(tmp_path: Path):
    save_tiny(tmp_path / "model")
    rows = "".join(json.dumps(row) + "\n" for row in pair_rows(16))
    (tmp_path / "pairs.jsonl").write_text(rows)
    settings = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "objective": "apo",
        "bf16": False,
        "max_steps": 4,
        "global_batch_size": 8,
        "learning_rate": 0.01,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "activation_checkpointing": False,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    losses = {}
    for launcher, gpus in (("single", 1), ("fsdp2", torch.cuda.device_count())):
        words = ["--launcher", launcher, "--gpus", str(gpus)]
        words += ["--config", str(tmp_path / "recipe.yaml")]
        words += ["--output_dir", str(tmp_path / launcher)]
        done = subprocess.run(
            [sys.executable, "-m", "alignment", "train", *words],
            cwd=ROOT,
            env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        lines = (tmp_path / launcher / "metrics.jsonl").read_text().splitlines()
        losses[launcher] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses["fsdp2"] == pytest.approx(losses["single"], rel=1e-4)
