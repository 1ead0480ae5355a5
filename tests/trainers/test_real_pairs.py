"""Real answers with published preferences become pairs, and a small model learns from them."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignment.core.packing import pack
from alignment.core.rendering import Renderer
from alignment.core.rows import read_rows
from alignment.data import Preparation, Source, read_sources
from alignment.objectives.apo import APO
from tests.tiny import BOS_ID, EOS_ID, PAD_ID, tiny_tokenizer
from tests.trainers.runs import scored

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 96
"""How many of the data set's prompts these short runs see."""

MAX_LENGTH, HELD_OUT = 1024, 16


@pytest.fixture(scope="module")
def folder(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first prompts of the data set, and a small model with a tokenizer of this text."""
    source = shared_dir / "rewards" / "alpaca_eval_k8.jsonl.gz"
    source = source if source.is_file() else shared_dir / "data" / "rewards" / source.name
    if not source.is_file():
        pytest.skip(f"{source.name} is not among the shared files")
    folder = tmp_path_factory.mktemp("real")
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(PROMPTS), file, strict=False)]
    (folder / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer(texts(rows), vocab_size=2000)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield row["prompt"]
        yield from (str(response["text"]) for response in row["responses"])


def train(folder: Path, name: str, **changes: Any) -> str:
    """Trains through `accelerate launch` by a recipe that is written here; what it printed."""
    settings = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "groups.jsonl"),
        "pair_rule": "best_worst",
        "objective": "apo",
        "use_peft": True,
        "lora_r": 8,
        "lora_target_modules": "all-linear",
        "use_cpu": True,
        "max_length": MAX_LENGTH,
        "test_split_size": HELD_OUT,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "max_steps": 8,
        "global_batch_size": 8,
        "max_tokens_per_batch": 4096,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / name),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    single = ROOT / "recipes" / "accelerate" / "single.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(single)]
    variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    caches = {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "alignment.train", "--config", str(path)],
        env={**os.environ, **variables, **caches},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]
    return done.stdout + done.stderr


def history(folder: Path, metric: str) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row[metric] for row in map(json.loads, lines) if metric in row]


def assert_learned(folder: Path, told: str) -> None:
    assert "preflight passed" in told
    losses, margins = history(folder, "loss"), history(folder, "rewards/margins")
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    assert margins[0] == pytest.approx(0.0, abs=1e-5)
    assert sum(margins[-3:]) > sum(margins[:3]) + 0.3
    assert sum(losses[-3:]) / 3 < 0.95
    accuracies = history(folder, "eval_rewards/accuracies")
    assert all(0.0 <= accuracy <= 1.0 for accuracy in accuracies)


def held_out_log_probs(folder: Path, model: Any) -> dict[str, float]:
    """Mean log-prob of a held-out chosen and of a rejected response, as the run reports them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prepare = Preparation(Renderer(tokenizer, MAX_LENGTH), APO(), "best_worst")
    rows = prepare(read_sources([Source(str(folder / "groups.jsonl"))]))
    _, held_out = rows.split(HELD_OUT, seed=42)
    batch = pack([held_out[i] for i in range(len(held_out))], "plain", PAD_ID)
    summed = torch.zeros(len(batch.role)).index_add(
        0, batch.response_of_token, scored(model, batch)
    )
    return {
        side: float(summed[batch.role == role].mean())
        for side, role in (("chosen", 1), ("rejected", -1))
    }


def test_a_small_model_learns_from_real_pairs(folder: Path):
    told = train(folder, "text")
    assert_learned(folder / "text", told)
    assert "groups kept" in told
    assert "eval_rewards/accuracies" in told
    assert len(history(folder / "text", "eval_rewards/accuracies")) == 2


def test_the_saved_adapter_gives_the_log_probs_of_the_run(folder: Path):
    """Loaded with peft onto the base model, it repeats what the run's last evaluation reported."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    start = held_out_log_probs(folder, model)
    found = held_out_log_probs(folder, PeftModel.from_pretrained(model, folder / "text"))
    for side, value in found.items():
        assert value == pytest.approx(history(folder / "text", f"eval_logps/{side}")[-1], rel=1e-5)
        assert abs(value - start[side]) > 0.01


def test_pairs_are_streamed_as_conversations(folder: Path):
    """The same pairs in TRL's conversational format, rendered by the chat template."""
    lines = []
    for _, row in read_rows(folder / "groups.jsonl"):
        answers = sorted(row["responses"], key=lambda answer: -answer["reward"])
        pair = {"chosen": answers[0]["text"], "rejected": answers[-1]["text"]}
        turns = {side: [{"role": "assistant", "content": text}] for side, text in pair.items()}
        prompt = [{"role": "user", "content": row["prompt"]}]
        lines.append(json.dumps({"prompt": prompt, **turns}) + "\n")
    (folder / "chat").mkdir()
    (folder / "chat" / "train.jsonl").write_text("".join(lines))
    told = train(
        folder,
        "chat-run",
        dataset_name=str(folder / "chat"),
        dataset_streaming=True,
        pair_rule=None,
    )
    assert_learned(folder / "chat-run", told)
