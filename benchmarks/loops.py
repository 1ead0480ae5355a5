"""CUT online and CLAIR on-policy in rounds against one offline round of as many examples.

    python -m benchmarks.loops [--seeds N] [--json FILE] [--folder FOLDER]

In the small world of the quickstart, by `recipes/cut/loop.yaml` and `recipes/clair/loop.yaml`. The
offline side answers the prompts of all rounds with the start and trains once, on as many examples
as the rounds have together. Each seed has a world and a start of its own. Both sides are judged
against the start on the same held-out prompts; the interval of their difference is a bootstrap over
prompts and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

from alignment.cli import load_yaml, parse
from alignment.commands.loop import loop
from alignment.comparison.results import commit
from alignment.core.rows import read_rows
from alignment.quickstart.inputs import write_world
from alignment.rounds.options import Options
from alignment.stages import option_words, training
from benchmarks._measure import table
from eval.stats import bootstrap_mean

METHODS = ("cut", "clair")
_HEAD = (
    *("method", "seeds", "prompts", "examples online", "offline"),
    *("online", "offline", "difference", "95%"),
)


def start(folder: Path, seed: int, steps: int, prompts: int, held_out: int) -> Path:
    """A world with a model that has learnt from its flawed demonstrations, made once.

    Args:
        folder: Where to.
        seed: Of world and weights.
        steps: Of SFT.
        prompts: To train on.
        held_out: To evaluate on.
    """
    if not (folder / "start/config.json").exists():
        write_world(
            folder,
            demonstrations=12 * steps,
            train_prompts=prompts,
            held_out_prompts=held_out,
            seed=seed,
        )
        words = (
            *("--model_name_or_path", folder / "blank", "--objective", "sft"),
            *("--dataset_name", folder / "demonstrations.jsonl", "--max_steps", steps),
            *("--global_batch_size", 32, "--per_device_train_batch_size", 32),
            *("--learning_rate", 2e-3, "--warmup_steps", 30, "--lr_scheduler_type", "cosine"),
            *("--adam_beta2", 0.98, "--use_cpu", "true", "--seed", seed, "--save_steps", 200),
            *("--activation_checkpointing", "false"),
        )
        training("sft", words, folder / "start").work()
    return folder


def run(  # noqa: PLR0913 - all of one loop
    method: str, world: Path, rounds: int, prompts: int, examples: int, seed: int
) -> dict[str, Any]:
    """The results of a loop by its recipe.

    Args:
        method: Which recipe.
        world: Folder of `start`.
        rounds: How many.
        prompts: Of each round.
        examples: Of each round, at most.
        seed: Of the loop.
    """
    recipe = load_yaml(f"recipes/{method}/loop.yaml")
    changed = {
        "model": world / "start",
        "prompts": world / "prompts/train.jsonl",
        "held_out": world / "prompts/held_out.jsonl",
        "output": world / f"{method}-{rounds}",
        "rounds": rounds,
        "prompts_per_round": prompts,
        "examples_per_round": examples,
        "seed": seed,
    }
    words = [str(word) for word in option_words({**recipe, **changed})]
    options = parse(Options, [*words, "--patience", "null"], "benchmarks.loops")
    return {**loop(options), "scores": _scores(options.output)}


def compare(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """What rounds and one round come to.

    Args:
        pairs: Of each seed the results of the rounds and of the one round.
    """
    differences = [
        online["scores"][prompt] - offline["scores"][prompt]
        for online, offline in pairs
        for prompt in online["scores"]
        if prompt in offline["scores"]
    ]

    def last(side: int) -> list[float]:
        return [pair[side]["rounds"][-1]["score"] for pair in pairs]

    def examples(side: int) -> list[int]:
        return [sum(row["examples"] for row in pair[side]["rounds"]) for pair in pairs]

    return {
        "online": last(0),
        "offline": last(1),
        "by_round": [[row["score"] for row in online["rounds"]] for online, _ in pairs],
        "examples_online": examples(0),
        "examples_offline": examples(1),
        "difference": fmean(differences),
        "difference_ci": list(bootstrap_mean(differences, seed=0)),
        "comparisons": len(differences),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, whatever the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loops", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--folder", type=Path, default=Path("runs/loops"), help="of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=800, help="of each round")
    parser.add_argument("--examples", type=int, default=200, help="of each round, at most")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--sft-steps", type=int, default=1000)
    options = parser.parse_args(arguments)
    results, rows = {}, []
    for method in METHODS:
        pairs = []
        for seed in range(options.seeds):
            total = options.rounds * options.prompts
            world = start(
                options.folder / f"seed-{seed}", seed, options.sft_steps, total, options.held_out
            )
            most = options.examples
            online = run(method, world, options.rounds, options.prompts, most, seed)
            offline = run(method, world, 1, total, options.rounds * most, seed)
            pairs.append((online, offline))
        results[method] = compare(pairs)
        rows.append(_row(method, options.seeds, total, results[method]))
    print(table([_HEAD, *rows]))
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
        record = {"commit": commit(), "settings": settings, "methods": results}
        text = json.dumps(record, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def _scores(run: Path) -> dict[str, float]:
    """Prompt -> score of the last round against the start."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    last = run / results["rounds"][-1]["judged"] / "verdicts.jsonl"
    return {row["prompt"]: row["score"] for _, row in read_rows(last) if row["score"] is not None}


def _row(method: str, seeds: int, prompts: int, found: dict[str, Any]) -> tuple[str, ...]:
    low, high = found["difference_ci"]
    numbers = (fmean(found[name]) for name in ("online", "offline"))
    examples = (sum(found[f"examples_{side}"]) for side in ("online", "offline"))
    return (
        *(method, str(seeds), str(prompts), *map(str, examples)),
        *(f"{number:.3f}" for number in numbers),
        *(f"{found['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"),
    )


if __name__ == "__main__":
    main()
