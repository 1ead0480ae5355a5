"""Memory while 100,000 groups stream through preparation and training: it is to stay flat.

    python -m benchmarks.streaming [--groups N]

Rows are made one by one as a set on the Hub with `dataset_streaming: true` gives them, prepared
(rendering, token ids, storing) and trained on once by a recipe, 200 groups a step. What the process
holds itself is printed after a tenth of the groups and at the end; pages of mapped files, which the
system takes back at no cost, are not part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks._measure import anonymous, be_quiet, in_fresh_process, table
from benchmarks.scaling import Point, rows_of

BATCH = 200
"""Groups of an optimiser step."""

WORDS = 2
"""Words that are left of a prompt and of a response, so that the run takes minutes."""

FLAT = 0.05
"""How far memory may lie above its level after a tenth of the groups."""


def groups(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of random words, with their names."""
    for number, row in enumerate(rows_of(Point(count, 2))):
        yield f"stream[{number}]", {name: _short(text) for name, text in row.items()}


def _short(text: str) -> str:
    return " ".join(text.split()[:WORDS])


class Levels:
    """Memory when a count of groups has been passed.

    Attributes:
        found: Bytes by stage and count.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.found: dict[str, dict[int, float]] = {}
        self._counts = counts

    def at(self, stage: str, count: int) -> None:
        """Looks, if it is time to."""
        if count in self._counts:
            self.found.setdefault(stage, {})[count] = anonymous()

    def passing(self, rows: Iterator[Any], stage: str) -> Iterator[Any]:
        """The same rows."""
        for count, row in enumerate(rows, start=1):
            yield row
            self.at(stage, count)


def measure(count: int) -> dict[str, Any]:
    """Prepares and trains on `count` groups; returns megabytes by stage and groups."""
    with tempfile.TemporaryDirectory() as folder:
        # Before `datasets` is imported, which reads it once.
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        return _measure(count, Path(folder))


def _measure(count: int, folder: Path) -> dict[str, Any]:
    from peft import LoraConfig
    from transformers import TrainerCallback

    from alignment.core.rendering import Renderer
    from alignment.data import Preparation
    from alignment.objectives.apo import APO
    from alignment.trainers.base import GroupTrainer
    from alignment.trainers.config import GroupConfig
    from tests.tiny import tiny_model, tiny_tokenizer

    levels = Levels((count // 10, count))

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            levels.at("training", state.global_step * BATCH)

    start = time.perf_counter()
    tokenizer = tiny_tokenizer()
    prepare = Preparation(Renderer(tokenizer, None), APO())
    data = prepare(levels.passing(groups(count), "preparing"))
    prepared = time.perf_counter() - start
    args = GroupConfig(
        output_dir=str(folder / "run"),
        use_cpu=True,
        report_to="none",
        num_train_epochs=1,
        global_batch_size=BATCH,
        max_tokens_per_batch=4000,
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
        activation_checkpointing=False,
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    trainer = GroupTrainer(
        tiny_model(num_hidden_layers=1),
        args,
        data,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Look()],
    )
    trainer.train()
    return {
        "megabytes": {
            stage: {str(at): level / 1e6 for at, level in found.items()}
            for stage, found in levels.found.items()
        },
        "seconds": {
            "preparing": prepared,
            "training": time.perf_counter() - start - prepared,
        },
    }


def growth(found: dict[str, float]) -> float:
    """By what share memory at the end lies above that after a tenth."""
    first, last = found.values()
    return last / first - 1


def report(found: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """Says what was found, stage by stage."""
    rows = [("stage", "groups", "MB", "")]
    for stage, levels in found["megabytes"].items():
        for count, level in levels.items():
            rows.append(
                (stage, count, f"{level:.0f}", f"x{level / next(iter(levels.values())):.3f}")
            )
    say(table(rows))
    for stage, levels in found["megabytes"].items():
        above = growth(levels)
        say(
            f"{'flat' if above <= FLAT else 'NOT FLAT'}: {stage}: {above:+.1%} "
            f"in {found['seconds'][stage]:.0f} s"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints memory after a tenth of the groups and at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=100_000, help="a multiple of 2000")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    be_quiet()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return
    report(in_fresh_process("benchmarks.streaming", options.groups))


if __name__ == "__main__":
    main()
