"""What training takes on 1, 8 and 64 GPUs, by `alignment estimate`.

    python -m benchmarks.engines [--sizes 1B 8B 70B] [--output FILE.json]

It prints the table of docs/distributed.md.

Models of 1, 8 and 70 billion parameters are configurations without weights, the data are pairs of
random text in fixed lengths. Every figure is an estimate; no GPU is needed or used.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import LlamaConfig

from alignment import compat
from alignment.cli import parse, run, say
from alignment.commands import estimate
from alignment.train import parse_recipe
from alignment.trainers.footprint import Footprint
from tests.tiny import tiny_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
}
"""Those of Llama 3; heads are 64 or 128 wide, eight of keys and values."""

LORA = ("--use_peft", "true", "--lora_r", "16", "--lora_target_modules", "all-linear")
TRAINED: dict[str, tuple[str, ...]] = {
    "LoRA": LORA,
    "full": (),
}
ENGINES: dict[tuple[str, str], dict[int, Literal[0, 2, 3]]] = {
    ("1B", "LoRA"): {1: 0, 8: 0, 64: 0},
    ("1B", "full"): {1: 0, 8: 2, 64: 2},
    ("8B", "LoRA"): {1: 0, 8: 0, 64: 0},
    ("8B", "full"): {1: 0, 8: 3, 64: 3},
    ("70B", "LoRA"): {1: 0, 8: 3, 64: 3},
    ("70B", "full"): {1: 0, 8: 3, 64: 3},
}
"""ZeRO stage by GPUs for each size and what trains; one GPU shows why there have to be more."""

PAIRS, PROMPT, RESPONSE = 512, 256, 384
"""Pairs of an epoch; tokens of a prompt and of each response."""


@dataclass(kw_only=True)
class Options:
    """Options of the table."""

    sizes: list[str] = field(
        default_factory=lambda: list(SHAPES), metadata={"help": "models to estimate: 1B, 8B, 70B"}
    )
    output: Path | None = field(default=None, metadata={"help": "file to write the figures to"})
    flops: float = field(
        default=4e14, metadata={"help": "operations per second of a GPU: 40% of an H100's in bf16"}
    )


HELD = ("weights", "gathered", "trained_weights", "reference_and_teacher")


def main(argv: list[str]) -> None:
    """Estimates all runs and prints them as a table."""
    options = parse(Options, argv, "python -m benchmarks.engines", __doc__)
    compat.ignore_renamed()
    rows: list[dict[str, Any]] = []
    say("| model | trains | GPUs | engine | held, GiB | in all, GiB | step, s |")
    say("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_data(folder / "pairs.jsonl")
        for (size, trained), engines in ENGINES.items():
            if size not in options.sizes:
                continue
            words = _words(folder, _write_model(folder / size, SHAPES[size]))
            for row in figures_of([*words, *TRAINED[trained]], engines, options.flops):
                rows.append({"size": size, "trained": trained, **row})
                say(line(rows[-1]))
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def figures_of(
    words: list[str], engines: Mapping[int, Literal[0, 2, 3]], flops: float
) -> Iterator[dict[str, Any]]:
    """The figures of one run under several engines; its step is traced once.

    Passes are as large on every number of GPUs here, so that the trace of one serves for all.
    """
    figures = estimate.estimate(parse_recipe(words), estimate.Options(flops=flops))
    footprint = Footprint(**figures["footprint"])
    args = parse_recipe(words).training
    for gpus, stage in engines.items():
        wanted = estimate.Options(num_processes=gpus, zero_stage=stage)
        yield {
            "processes": gpus,
            "zero_stage": stage,
            "memory": estimate.memory_of(footprint, args, wanted),
            "seconds_per_step": figures["seconds_per_step"] / gpus,
            "largest_pass": figures["largest_pass"],
        }


def line(row: dict[str, Any]) -> str:
    """A line of the table in the docs."""
    memory, gib = row["memory"], 2**30
    held = sum(memory[name] for name in HELD)
    engine = "one process" if row["processes"] == 1 else "DDP"
    engine = f"ZeRO-{row['zero_stage']}" if row["zero_stage"] else engine
    seconds = float(f"{row['seconds_per_step']:.2g}")
    return (
        f"| {row['size']} | {row['trained']} | {row['processes']} | {engine} "
        f"| {held / gib:.1f} | {memory['total'] / gib:.1f} | {seconds:g} |"
    )


def _words(folder: Path, model: Path) -> list[str]:
    settings = {
        "model_name_or_path": model,
        "dataset_name": folder / "pairs.jsonl",
        "dtype": "bfloat16",
        "bf16": "true",
        "use_cpu": "true",
        "global_batch_size": 256,
        "max_tokens_per_batch": 2048,
        "max_length": 2048,
        "report_to": "none",
        "output_dir": folder / "run",
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def _write_model(folder: Path, shape: dict[str, Any]) -> Path:
    if not folder.exists():
        heads = shape["hidden_size"] // (64 if shape["hidden_size"] == 2048 else 128)
        config = LlamaConfig(
            **shape,
            vocab_size=128256,
            num_attention_heads=heads,
            num_key_value_heads=8,
            tie_word_embeddings=shape["hidden_size"] == 2048,
            max_position_embeddings=8192,
            architectures=["LlamaForCausalLM"],
            bos_token_id=1,
            eos_token_id=2,
        )
        config.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


def _write_data(path: Path) -> None:
    """Pairs whose characters are a token each."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices("ZXQJKV", k=length))

    rows = (
        {"prompt": text(PROMPT), "chosen": text(RESPONSE - 1), "rejected": text(RESPONSE - 1)}
        for _ in range(PAIRS)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    run(main)
