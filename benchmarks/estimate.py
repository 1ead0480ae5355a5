"""What `alignment estimate` says of a recipe, beside what the run then takes.

    python -m benchmarks.estimate [--json FILE]

Each recipe trains a small Llama with random weights on rows of random words. It is estimated, then
run by the same words in processes of its own, for memory and for time. Memory is the peak of some
steps above the level before the first one, time the median of steps after it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks._measure import Growth, be_quiet, in_fresh_process, release, table

WORDS = [f"{first}{second}{third}" for first in "bdfgk" for second in "aeio" for third in "lmn"]


class Work(NamedTuple):
    """A recipe: what is trained on what."""

    name: str
    responses: int = 2
    vocabulary: int = 32_000
    hidden: int = 192
    batch: int = 4
    prompt: int = 256
    response: int = 96
    adapter: bool = True
    checkpointing: bool = False


WORKS = (
    Work("pairs"),
    Work("large vocabulary", vocabulary=151_936, batch=2),
    Work("groups of 4", responses=4),
    Work("checkpointing", checkpointing=True, batch=8),
    Work("all weights", adapter=False),
    Work("wider model", hidden=512, batch=2),
)
STEPS = 6


@dataclass(frozen=True)
class Figures:
    """What was said and what was found.

    Attributes:
        estimated_megabytes: Of optimiser and step, without the weights.
        megabytes: The same, measured.
        estimated_seconds: Of a step.
        seconds: The same, measured.
    """

    estimated_megabytes: float
    megabytes: float
    estimated_seconds: float
    seconds: float


def rows_of(work: Work, count: int) -> Iterator[dict[str, Any]]:
    """Rows of random words."""
    rng = random.Random(0)
    for _ in range(count):
        prompt = " ".join(rng.choices(WORDS, k=work.prompt))
        texts = [" ".join(rng.choices(WORDS, k=work.response)) for _ in range(work.responses)]
        if work.responses == 2:
            yield {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
        else:
            yield {"prompt": prompt, "responses": texts, "rewards": [rng.random() for _ in texts]}


def recipe(work: Work, folder: Path) -> list[str]:
    """Writes model and data; returns the words of `alignment train`."""
    from benchmarks._sides import Shape, tiny_tokenizer

    shape = Shape(
        vocabulary=work.vocabulary,
        hidden=work.hidden,
        intermediate=8 * work.hidden // 3,
        heads=work.hidden // 32,
        kv_heads=work.hidden // 64,
    )
    shape.model().save_pretrained(folder / "model")
    tiny_tokenizer([" ".join(WORDS)] * 2, vocab_size=600).save_pretrained(folder / "model")
    data = folder / "rows.jsonl"
    with data.open("w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows_of(work, work.batch * STEPS))
    settings = {
        "model_name_or_path": folder / "model",
        "dataset_name": data,
        "objective": "apo" if work.responses == 2 else "nca",
        "use_peft": work.adapter,
        "lora_target_modules": "all-linear",
        "global_batch_size": work.batch,
        "per_device_train_batch_size": work.batch,
        "activation_checkpointing": work.checkpointing,
        "max_steps": STEPS,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": folder / "run",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def measure(work: Work) -> Figures:
    """Estimates a recipe, then runs it."""
    with tempfile.TemporaryDirectory() as name:
        # Before `datasets` is imported, which reads it once.
        os.environ["HF_DATASETS_CACHE"] = str(Path(name) / "cache")
        return _measure(recipe(work, Path(name)))


def figures_of(work: Work) -> Figures:
    """Time from one process; memory from another one, which gives what it frees back at once."""
    timed, tight = (
        Figures(**in_fresh_process("benchmarks.estimate", list(work), tight=tight))
        for tight in (False, True)
    )
    return replace(timed, megabytes=tight.megabytes)


def _measure(words: list[str]) -> Figures:
    from alignment.commands.estimate import Options, estimate
    from alignment.train import build_trainer, parse_recipe
    from benchmarks._sides import Turns

    said = estimate(parse_recipe(words), Options())
    trainer = build_trainer(parse_recipe(words))
    # Weights that are mapped from their file become memory as they are written, not by a step.
    for weight in trainer.model.parameters():
        weight.data.mul_(1.0)
    release()
    growth = Growth()
    with Turns(trainer, gradients=False) as turns:
        turns.step()
        seconds = [turns.step() for _ in range(STEPS - 1)]
    return Figures(
        estimated_megabytes=(said["memory"]["optimiser"] + said["memory"]["peak_of_step"]) / 1e6,
        megabytes=growth.megabytes(),
        estimated_seconds=said["seconds_per_step"],
        seconds=median(seconds),
    )


def lines(found: dict[str, Figures]) -> list[tuple[str, ...]]:
    """The cells of the table, header first."""
    rows: list[tuple[str, ...]] = [
        ("", "MB said", "MB found", "said / found", "s said", "s found", "said / found")
    ]
    for name, figures in found.items():
        rows.append(
            (
                name,
                f"{figures.estimated_megabytes:.0f}",
                f"{figures.megabytes:.0f}",
                f"{figures.estimated_megabytes / figures.megabytes:.2f}",
                f"{figures.estimated_seconds:.2f}",
                f"{figures.seconds:.2f}",
                f"{figures.estimated_seconds / figures.seconds:.2f}",
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    be_quiet()
    if options.one:
        print(json.dumps(asdict(measure(Work(*json.loads(options.one))))))
        return
    found = {work.name: figures_of(work) for work in WORKS}
    print(table(lines(found)))
    if options.json:
        figures = {name: asdict(one) for name, one in found.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
