"""Time and memory for each unique token as data and groups grow: they are to stay flat.

    python -m benchmarks.scaling [--quick] [--json FILE]

Each line prepares rows of text (rendering, token ids, storing), builds the trainer with the plan of
its epochs, and takes some optimiser steps. With more rows, a token is to cost what it did. With
more responses to a prompt, a step holds about as many unique tokens as ever, so that its time and
memory can be compared. Every prompt has 64 words and every response as many.

For time, the lines of a series share a process and take their steps in turns. For memory, each has
a process of its own; it is the peak above the level before, without pages of mapped files.

What a token needs is not quite the same in all lines: of a larger group more tokens are response
tokens, which the head scores (half of them at K = 1, 94% at K = 16) and which see more before them.
So the head weighs as much beside the layers as that of an 8B Llama, these are wide enough for
attention to be a small part of them, and the operations that a token needs stand beside its time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._measure import Growth, be_quiet, in_fresh_process, release, table

if TYPE_CHECKING:
    from benchmarks._sides import Turns

WORDS = 64
"""Words of a prompt and of a response."""

STEP_TEXTS = 34
"""About how many prompts and responses an optimiser step holds, whatever the size of the groups."""

MODEL: dict[str, Any] = {
    "vocabulary": 1400,
    "hidden": 512,
    "intermediate": 1536,
    "layers": 3,
    "heads": 8,
    "kv_heads": 4,
}
"""Its head has 7.6% of the weights of its layers, in Llama 3 8B it is 7.5%."""

FLAT = 0.10
"""How far a figure may lie above the first one of its series."""


class Point(NamedTuple):
    """One line: rows of data, responses of a row."""

    rows: int
    responses: int


ROWS = tuple(Point(rows, 2) for rows in (1_000, 8_000, 64_000))
RESPONSES = tuple(Point(1_000, responses) for responses in (1, 2, 4, 8, 16))
WARM_UP = Point(100, 2)
"""Prepared and built untimed: the first one loads and starts what all use."""


@dataclass(frozen=True)
class Figures:
    """What one line found.

    Attributes:
        prepared: Unique tokens of all rows.
        prepare_seconds: From rows of a file to stored groups.
        build_seconds: From groups to the trainer with its plan.
        step_tokens: Unique tokens of a step.
        step_seconds: Median of steps.
        prepare_megabytes: Peak of preparation above the level before it.
        step_megabytes: Peak of the steps above the level before them.
        step_operations: Millions of operations that a step has to do for each unique token.
    """

    prepared: int
    prepare_seconds: float
    build_seconds: float
    step_tokens: float
    step_seconds: float
    prepare_megabytes: float
    step_megabytes: float
    step_operations: float

    @property
    def prepare_cost(self) -> float:
        """Microseconds of preparation and building for each unique token."""
        return 1e6 * (self.prepare_seconds + self.build_seconds) / self.prepared

    @property
    def step_cost(self) -> float:
        """Microseconds of a step for each unique token."""
        return 1e6 * self.step_seconds / self.step_tokens

    @property
    def step_memory(self) -> float:
        """Kilobytes of a step for each unique token."""
        return 1e3 * self.step_megabytes / self.step_tokens


def rows_of(point: Point, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of random words; pairs, or scored groups where there are not two responses."""
    rng = random.Random(seed)
    for _ in range(point.rows):
        prompt, *texts = (_text(rng) for _ in range(1 + point.responses))
        if point.responses == 2:
            yield {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
        else:
            yield {"prompt": prompt, "responses": texts, "rewards": [rng.random() for _ in texts]}


_VOCABULARY = [
    f"{first}{second}{third}" for first in "bdfgk" for second in "aeio" for third in "lmn"
]


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(_VOCABULARY, k=WORDS))


def figures_of(points: Sequence[Point], steps: int) -> list[Figures]:
    """Time from one process; memory from one for each, which gives what it frees back at once."""
    timed = _in_process(points, steps)
    tight = [_in_process([point], 1, tight=True)[0] for point in points]
    return [
        replace(
            time, prepare_megabytes=memory.prepare_megabytes, step_megabytes=memory.step_megabytes
        )
        for time, memory in zip(timed, tight, strict=True)
    ]


def _in_process(points: Sequence[Point], steps: int, *, tight: bool = False) -> list[Figures]:
    found = in_fresh_process("benchmarks.scaling", [points, steps], tight=tight)
    return [Figures(**figures) for figures in found]


def measure(points: Sequence[Point], steps: int) -> list[Figures]:
    """Prepares and builds each, then lets them take `steps` steps in turns, after one untimed.

    Memory of steps is that of all of them: it means something where there is one point.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Before `datasets` is imported, which reads it once.
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        _start(WARM_UP, steps, folder / "warm up")
        release()
        started = [_start(point, steps + 1, folder / str(i)) for i, point in enumerate(points)]
        growth = Growth()
        turns = [stack.enter_context(turn) for turn, _ in started]
        for turn in turns:
            turn.step()
        seconds = [[turn.step() for turn in turns] for _ in range(steps)]
        megabytes = growth.megabytes()
    return [
        Figures(**known, step_seconds=median(times), step_megabytes=megabytes)
        for (_, known), times in zip(started, zip(*seconds, strict=True), strict=True)
    ]


def _start(point: Point, steps: int, folder: Path) -> tuple[Turns, dict[str, Any]]:
    """A trainer that is ready to take its steps, and the figures that are known before them."""
    from alignment.core.rendering import Renderer
    from alignment.data import Preparation, Source, read_sources
    from alignment.objectives.apo import APO
    from benchmarks._operations import operations
    from benchmarks._sides import GROUP_LOSS, Shape, Turns, our_trainer, tiny_tokenizer

    folder.mkdir()
    file = folder / "rows.jsonl"
    with file.open("w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows_of(point))
    tokenizer = tiny_tokenizer([" ".join(_VOCABULARY)] * 2, vocab_size=600)
    objective = APO() if point.responses == 2 else GROUP_LOSS
    prepare = Preparation(Renderer(tokenizer, None), objective, chat=True)
    growth = Growth()
    start = time.perf_counter()
    groups = prepare(read_sources([Source(str(file))]))
    prepare_seconds = time.perf_counter() - start
    prepare_megabytes = growth.megabytes()
    shape = Shape(**MODEL)
    batch = round(STEP_TEXTS / (1 + point.responses))
    start = time.perf_counter()
    trainer = our_trainer(shape, shape.model(), groups, folder / "run", batch, steps)
    build_seconds = time.perf_counter() - start
    lengths = groups.lengths("shared")
    some = [groups[index] for index in range(batch)]
    return Turns(trainer, gradients=False), {
        "prepared": int(lengths.sum()),
        "prepare_seconds": prepare_seconds,
        "build_seconds": build_seconds,
        "prepare_megabytes": prepare_megabytes,
        "step_tokens": batch * float(lengths.mean()),
        "step_operations": operations(shape, some, stored=False)
        / (1e6 * float(lengths[:batch].sum())),
    }


HEADER = (
    *("rows", "K", "prepare us/token", "", "prepare MB", ""),
    *("step us/token", "", "step KB/token", "", "step MFLOP/token", ""),
)


def lines(points: Sequence[Point], found: Sequence[Figures]) -> list[tuple[str, ...]]:
    """The cells of a series, each figure with its ratio to the first one."""
    rows: list[tuple[str, ...]] = [HEADER]
    for point, figures in zip(points, found, strict=True):
        cells = [str(point.rows), str(point.responses)]
        for name, digits in (
            ("prepare_cost", 2),
            ("prepare_megabytes", 0),
            ("step_cost", 2),
            ("step_memory", 1),
            ("step_operations", 1),
        ):
            value, first = getattr(figures, name), getattr(found[0], name)
            cells += [f"{value:.{digits}f}", f"x{value / first:.2f}"]
        rows.append(tuple(cells))
    return rows


def excess(found: Sequence[Figures], names: Sequence[str]) -> dict[str, float]:
    """By how much the largest of each figure lies above the first one."""
    values = {name: [getattr(figures, name) for figures in found] for name in names}
    return {name: max(series) / series[0] - 1 for name, series in values.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the series over rows and the series over responses."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="1000 and 8000 rows, K up to 4")
    parser.add_argument("--steps", type=int, default=16, help="timed of each line")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    be_quiet()
    if options.one:
        points, steps = json.loads(options.one)
        found = measure([Point(*point) for point in points], steps)
        print(json.dumps([asdict(figures) for figures in found]))
        return
    count = 2 if options.quick else None
    series = {
        "rows": (ROWS[:count], ("prepare_cost", "step_cost", "step_memory")),
        "responses": (RESPONSES[: count and 3], ("prepare_cost", "step_cost", "step_memory")),
    }
    report: dict[str, Any] = {}
    for name, (points, flat) in series.items():
        found = figures_of(points, options.steps)
        print(f"\nmore {name}:")
        print(table(lines(points, found)))
        above = excess(found, flat)
        for figure, share in above.items():
            print(f"{'flat' if share <= FLAT else 'NOT FLAT'}: {figure}: {share:+.0%}")
        report[name] = [
            {**point._asdict(), **asdict(one)} for point, one in zip(points, found, strict=True)
        ]
        report[f"excess over {name}"] = above
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
