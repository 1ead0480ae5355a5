"""Time of decoding by a contrast against plain decoding, with the same model twice.

    python -m benchmarks.decoding [--json FILE]

Both sides generate the same number of tokens greedily from the same prompts, padded on the left, in
turns; the second pass has a cache of its own, so that a step reads one token twice and no more.
What is bounded is the ratio of the medians, 2.2. With a reward model each step reads its candidates
too, which is told and not bounded.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
)

from alignment.contrasts.adacad import AdaCAD
from alignment.contrasts.args import ARGS
from alignment.contrasts.base import Contrast
from alignment.contrasts.contrastive import Contrastive
from alignment.contrasts.obrien_lewis import OBrienLewis
from alignment.decoding.passes import Pass, RewardPass
from alignment.decoding.processor import ContrastProcessor
from benchmarks._measure import Spread, table

BOUND = 2.2
CONTRASTS: dict[str, Contrast] = {
    "contrastive": Contrastive(),
    "obrien_lewis": OBrienLewis(),
    "adacad": AdaCAD(threshold=0.3),
}
Make = Callable[[], ContrastProcessor | None]


def models(options: argparse.Namespace) -> tuple[Any, Any]:
    """A causal model and a reward model of the same random shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_labels=1,
        pad_token_id=0,
    )
    causal = LlamaForCausalLM(config)
    reward = AutoModelForSequenceClassification.from_config(config)
    return causal.to(options.device).eval(), reward.to(options.device).eval()


def prompts(options: argparse.Namespace) -> dict[str, Tensor]:
    """Random prompts of several lengths, padded on the left."""
    shape = (options.batch_size, options.prompt)
    ids = torch.randint(3, options.vocabulary, shape, device=options.device)
    mask = torch.ones_like(ids)
    for row in range(options.batch_size):
        mask[row, : row * options.prompt // (2 * options.batch_size)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def sides(options: argparse.Namespace) -> tuple[Any, dict[str, Tensor], dict[str, Make]]:
    """The model, its prompts, and for each side what makes its processor."""
    causal, reward = models(options)
    given = prompts(options)

    def guided(contrast: Contrast) -> Make:
        return lambda: ContrastProcessor(contrast, Pass(causal, **given))

    search = ARGS(top_k=10)
    made: dict[str, Make] = {
        "plain": lambda: None,
        **{name: guided(contrast) for name, contrast in CONTRASTS.items()},
        "args": lambda: ContrastProcessor(search, RewardPass(reward, search, **given)),
    }
    return causal, given, made


def seconds(model: Any, given: dict[str, Tensor], tokens: int, make: Make) -> float:
    """Wall time of one generation."""
    made = make()
    began = time.perf_counter()
    model.generate(
        **given,
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        logits_processor=LogitsProcessorList([] if made is None else [made]),
    )
    if given["input_ids"].device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each side: seconds, tokens per second, and the ratio to plain decoding."""
    model, given, made = sides(options)
    for make in made.values():
        seconds(model, given, 4, make)  # what is set up once
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(options.rounds):
        for name, make in made.items():
            times[name].append(seconds(model, given, options.tokens, make))
    plain = Spread.of(times["plain"]).median
    rows = []
    for name, values in times.items():
        spread = Spread.of(values)
        rows.append(
            {
                "side": name,
                "seconds": spread._asdict(),
                "tokens_per_second": options.tokens * options.batch_size / spread.median,
                "ratio": spread.median / plain,
                "bound": BOUND if name in CONTRASTS else None,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one row for each side, and whether the bound is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--tokens", type=int, default=200, help="that are generated")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="longest prompt, tokens")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)
    rows = measure(options)
    cells = [("side", "seconds", "quartiles", "tokens/s", "of plain")]
    for row in rows:
        median, low, high = row["seconds"].values()
        cells.append(
            (
                row["side"],
                f"{median:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{row['tokens_per_second']:.0f}",
                f"{row['ratio']:.2f}",
            )
        )
    print(table(cells))
    worst = max(row["ratio"] for row in rows if row["bound"])
    print(f"the same model twice: at most {worst:.2f} times plain decoding, bound {BOUND}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
