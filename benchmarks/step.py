"""Time and memory of a training step, against TRL's `DPOTrainer` on the same work.

    python -m benchmarks.step --against trl [--quick] [--json FILE]

A step is all that a trainer does for one update of the adapter: collation, reference, forward,
backward, clipping, optimiser. Both sides train the same small Llama in float32 on the same groups
of token ids, with the same adapter, batch and optimiser, without dropout. Neither is told to split
a batch.

- `trl` is TRL as it comes: batches in random order, one padded row per response.
- `trl, sorted` has its rows in batches of similar length, as sorting all the data makes them.
- `trl, stored reference` has computed its reference before training; so has its namesake of ours.

Pairs are trained by APO-zero. TRL has no loss for more than two responses: there its trainer, with
its forward, head and reference on one padded row per response, hands the log-probs to this
project's NCA.

Groups of an epoch are spread evenly over the lengths of the data. Sides take turns step by step; a
round is an epoch, its figure the mean over its steps, and shown are median and quartiles of rounds.
Memory is the high-water mark minus the level before the first step, without mapped files such as
libraries, in a process for each side that takes one step on the batch of the longest groups and
gives what it frees back at once. Differences of loss and gradient are relative to ours, summed over
an epoch: the same groups whatever their order.

Below a table stand the time of our sides over that of their matrix products alone, and where ours
spends it, by a profile of an epoch: element-wise is all that is no matrix product, attention, head,
optimiser or making of batches, between operations is Python.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks._measure import Growth, Spread, be_quiet, in_fresh_process, release, table

if TYPE_CHECKING:
    from alignment.core.packing import TokenGroup
    from benchmarks._sides import Shape, Side, Turns

OURS, OURS_STORED = "ours", "ours, stored reference"
TRL, TRL_SORTED, TRL_STORED = "trl", "trl, sorted", "trl, stored reference"
REAL = "alpaca_eval"


class Work(NamedTuple):
    """What one table is about: kind of data, responses of a group, vocabulary."""

    data: str
    responses: int = 2
    vocabulary: int = 32_000


class Size(NamedTuple):
    """How much of it: groups of a step, steps of an epoch."""

    batch: int = 4
    steps: int = 2


WORKS = {
    Work(REAL): Size(steps=3),
    Work("512x128"): Size(),
    Work(REAL, 4): Size(),
    Work(REAL, 8): Size(batch=2),
    Work(REAL, vocabulary=151_936): Size(batch=2),
    Work("ultrafeedback"): Size(),
    Work("helpsteer"): Size(),
    Work("hh"): Size(),
    Work("summarisation"): Size(),
}
QUICK = {Work(REAL): Size(batch=2, steps=3), Work("512x128"): Size(batch=2, steps=1)}


class Target(NamedTuple):
    """How many times faster than a side of TRL a side of ours is to be."""

    work: Work
    against: str
    side: str
    factor: float


TARGETS = (
    Target(Work(REAL), TRL, OURS, 3.0),
    Target(Work(REAL), TRL_STORED, OURS_STORED, 4.0),
    Target(Work(REAL), TRL_SORTED, OURS, 2.0),
    Target(Work(REAL, 4), TRL, OURS, 4.0),
    Target(Work(REAL, 4), TRL_SORTED, OURS, 2.5),
    Target(Work("512x128"), TRL, OURS, 4.5),
    Target(Work("512x128"), TRL_SORTED, OURS, 4.0),
)
MEMORY_TARGET = 0.6
"""Peak of ours over the peak of TRL as it comes, for the works that have a target of time."""


@dataclass(frozen=True)
class Result:
    """What was measured of one side.

    Attributes:
        seconds: Per step, over rounds.
        unique: Tokens of a step, every prompt counted once.
        padded: Positions of a step that the policy computed, over `unique`.
        reference: The same for passes without gradient.
        megabytes: Peak memory of the longest batch.
        loss_difference: Relative to ours.
        gradient_difference: Relative to ours, by norm.
    """

    seconds: Spread
    unique: float
    padded: float
    reference: float
    megabytes: float
    loss_difference: float
    gradient_difference: float

    @property
    def tokens_per_second(self) -> float:
        """Unique tokens."""
        return self.unique / self.seconds.median

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "seconds": self.seconds._asdict()}


def compare(
    shape: Shape, batches: Sequence[Sequence[TokenGroup]], rounds: int, sides: Mapping[str, Side]
) -> dict[str, Result]:
    """Lets the sides take turns; the first round is compared as well."""
    from benchmarks._data import unique_tokens
    from benchmarks._sides import difference

    steps = len(batches)
    unique = mean(map(unique_tokens, batches))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with running(shape, batches, sides, steps * rounds) as turns:
        for _ in range(rounds):
            for name, total in walk(turns, steps).items():
                seconds[name].append(total / steps)
        tallies = {name: turn.tally for name, turn in turns.items()}
    # What is measured next may want all the memory there is.
    turns.clear()
    gc.collect()
    torch.cuda.empty_cache()
    truth = tallies[OURS]
    # There is one longest batch, whatever order the batches come in.
    kinds = {name: replace(side, by_length=False) for name, side in sides.items()}
    peaks = {kind: peak_megabytes(shape, batches[-1], kind) for kind in set(kinds.values())}
    return {
        name: Result(
            seconds=Spread.of(seconds[name]),
            unique=unique,
            padded=tally.positions / (rounds * steps * unique),
            reference=tally.others / (rounds * steps * unique),
            megabytes=peaks[kinds[name]],
            loss_difference=abs(tally.loss - truth.loss) / abs(truth.loss),
            gradient_difference=difference(tally, truth),
        )
        for name, tally in tallies.items()
    }


def walk(turns: Mapping[str, Turns], steps: int) -> dict[str, float]:
    """Seconds of each side for some steps, taken in turns."""
    seconds = dict.fromkeys(turns, 0.0)
    for _ in range(steps):
        for name, turn in turns.items():
            seconds[name] += turn.step()
    return seconds


@contextmanager
def running(
    shape: Shape, batches: Sequence[Sequence[TokenGroup]], sides: Mapping[str, Side], steps: int
) -> Iterator[dict[str, Turns]]:
    """A trainer for each side, around the same tensors of the base model."""
    from benchmarks._sides import Turns, trainer_for

    model = shape.model()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        turns = {}
        for number, (name, side) in enumerate(sides.items()):
            trainer = trainer_for(side, shape, model, batches, root / str(number), steps)
            turns[name] = stack.enter_context(Turns(trainer))
        yield turns


def peak_megabytes(shape: Shape, batch: Sequence[TokenGroup], side: Side) -> float:
    """Peak memory of a step on one batch, in a process of its own."""
    groups = [asdict(group) for group in batch]
    setting = {"shape": asdict(shape), "side": asdict(side), "groups": groups}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "setting.json"
        file.write_text(json.dumps(setting))
        return float(in_fresh_process("benchmarks.step", str(file), tight=True))


def measure_peak(file: Path) -> float:
    """Megabytes that training takes on top of the trainer as it was built."""
    from alignment.core.packing import TokenGroup
    from benchmarks._sides import PrinterCallback, Shape, Side, trainer_for

    setting = json.loads(file.read_text())
    shape, side = Shape(**setting["shape"]), Side(**setting["side"])
    batch = [TokenGroup(**group) for group in setting["groups"]]
    trainer = trainer_for(side, shape, shape.model(), [batch], file.parent / "run", steps=1)
    trainer.remove_callback(PrinterCallback)
    release()
    growth = Growth(shape.device)
    trainer.train()
    return growth.megabytes()


HEADER = (
    *("", "s/step", "quartiles", "tokens/s", "computed", "reference", "MB"),
    *("time / ours", "/ stored", "loss", "gradient"),
)
LEGEND = (
    "tokens/s: unique tokens. computed, reference: positions of the policy's and of other passes "
    "over unique tokens.\ntime / ours, / stored: seconds over those of `ours` and of `ours, stored "
    "reference`. loss, gradient: relative difference from `ours`.\n"
)


def lines(results: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """The cells of a table, header first."""
    ours, stored = (results[name].seconds.median for name in (OURS, OURS_STORED))
    rows: list[tuple[str, ...]] = [HEADER]
    for name, result in results.items():
        seconds = result.seconds
        rows.append(
            (
                name,
                f"{seconds.median:.3f}",
                f"{seconds.low:.3f}-{seconds.high:.3f}",
                f"{result.tokens_per_second:.0f}",
                f"{result.padded:.2f}",
                f"{result.reference:.2f}",
                f"{result.megabytes:.0f}",
                f"{seconds.median / ours:.2f}",
                f"{seconds.median / stored:.2f}",
                f"{result.loss_difference:.0e}",
                f"{result.gradient_difference:.0e}",
            )
        )
    return rows


class Verdict(NamedTuple):
    """A target and what was found."""

    text: str
    found: float
    met: bool


def verdicts(work: Work, results: Mapping[str, Result]) -> list[Verdict]:
    """The targets that are set for a kind of work."""
    targets = [target for target in TARGETS if target.work == work]
    found = []
    for target in targets:
        factor = results[target.against].seconds.median / results[target.side].seconds.median
        text = f"{target.side} {target.factor:g} times as fast as {target.against}"
        found.append(Verdict(text, factor, factor >= target.factor))
    if targets:
        share = results[OURS].megabytes / results[TRL].megabytes
        text = f"memory of {OURS} at most {MEMORY_TARGET:g} of {TRL}"
        found.append(Verdict(text, share, share <= MEMORY_TARGET))
    return found


def arithmetic_limits(shape: Shape, batches: Sequence[Sequence[TokenGroup]]) -> dict[str, float]:
    """Seconds of a step that does what it has to, as fast as a layer's largest matrix product."""
    from benchmarks._data import unique_tokens
    from benchmarks._operations import operations, products_per_second

    rate = products_per_second(shape, unique_tokens(batches[-1]))
    return {
        name: mean(operations(shape, batch, stored=stored) for batch in batches) / rate
        for name, stored in ((OURS, False), (OURS_STORED, True))
    }


def report(work: Work, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one kind of work and prints its table."""
    from benchmarks._data import groups_of, sorted_batches
    from benchmarks._profile import where_time_goes
    from benchmarks._sides import SIDES, Shape

    shape = Shape(vocabulary=work.vocabulary, checkpointing=options.checkpointing)
    pool = groups_of(work.data, work.responses)
    batches = sorted_batches(pool, *size)
    results = compare(shape, batches, options.rounds, SIDES)
    print(
        f"\n{work.data}, K={work.responses}, vocabulary {work.vocabulary}, "
        f"{size.batch} groups a step:"
    )
    print(table(lines(results)), flush=True)
    limits = arithmetic_limits(shape, batches)
    for name, limit in limits.items():
        share = results[name].seconds.median / limit
        print(f"{name}: {share:.2f} times the {limit:.3f} s of its matrix products alone")
    spent = where_time_goes(shape, batches)
    print(f"{OURS} spends:", ", ".join(f"{share:.0%} {kind}" for kind, share in spent.items()))
    checked = verdicts(work, results)
    for verdict in checked:
        print(f"{'met' if verdict.met else 'NOT MET'}: {verdict.text}: {verdict.found:.2f}")
    return {
        **work._asdict(),
        "shape": asdict(shape),
        **size._asdict(),
        "sides": {name: result.record() for name, result in results.items()},
        "limits": limits,
        "spent": spent,
        "targets": [verdict._asdict() for verdict in checked],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one table for each kind of work."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", choices=["trl"], default="trl", help="the other trainer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="two kinds of work, one round")
    parser.add_argument("--data", nargs="+", choices=sorted({work.data for work in WORKS}))
    parser.add_argument("--responses", nargs="+", type=int, help="only these sizes of a group")
    parser.add_argument("--vocabulary", nargs="+", type=int, help="only these")
    parser.add_argument("--batch", type=int, help="groups of a step (4; 2 where steps are long)")
    parser.add_argument("--steps", type=int, help="of an epoch, which is a round (2 or 3)")
    parser.add_argument("--rounds", type=int, default=2, help="epochs (2)")
    parser.add_argument("--checkpointing", action="store_true", help="of activations, on all sides")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    be_quiet()
    if options.one:
        print(measure_peak(Path(json.loads(options.one))))
        return
    if options.quick:
        options.rounds = 1
    works = {
        work: Size(options.batch or size.batch, options.steps or size.steps)
        for work, size in (QUICK if options.quick else WORKS).items()
        if work.data in (options.data or [work.data])
        and work.responses in (options.responses or [work.responses])
        and work.vocabulary in (options.vocabulary or [work.vocabulary])
    }
    run(works, options)


def run(works: Mapping[Work, Size], options: argparse.Namespace) -> None:
    """Measures what the data at hand allows."""
    from benchmarks._data import shared_file

    if shared_file() is None:
        print(
            f"{REAL} is left out: there is no rewards/alpaca_eval_k8.jsonl.gz (rows of `prompt`, "
            "`responses` and `rewards`) in the folder that ALIGNMENT_SHARED names"
        )
        works = {work: size for work, size in works.items() if work.data != REAL}
    print(LEGEND, end="")
    found = [report(work, size, options) for work, size in works.items()]
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
