"""What a comparison found: every measure of every method with its interval, over seeds."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from alignment import __version__
from alignment.cli import UserError
from alignment.comparison.methods import METHODS, Method
from alignment.stages import RECORD

RESAMPLES = 4_000
PACKAGES = ("torch", "transformers", "trl", "peft")
MEASURES = {
    "win": "win rate over the start",
    "accurate": "accuracy of sampled answers",
    "right": "probability of a right answer",
    "chosen": "change of the log-prob of right answers",
    "rejected": "change of the log-prob of the start's wrong answers",
    "kl": "KL from the start, nats per answer",
    "length": "characters of an answer",
}
"""Measures with a value for each prompt."""

Values: TypeAlias = Mapping[int, Sequence[float]]
"""By seed, by prompt."""


class Estimate(NamedTuple):
    """A mean over seeds, each seed as heavy as another.

    Attributes:
        mean: Of the seeds' means.
        low: Lower end of the 95% bootstrap interval over prompts, drawn within each seed.
        high: Upper end.
        seeds: Mean of each seed; how far they lie apart is what another draw of everything does.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def estimate(values: Iterable[Sequence[float]], resamples: int = RESAMPLES) -> Estimate:
    """The mean of independent values with its interval.

    Args:
        values: Those of each seed, one for each prompt; seeds may have different prompts.
        resamples: Of the bootstrap.

    Raises:
        ValueError: There are no values.
    """
    values = list(values)
    if not values or not all(map(len, values)):
        raise ValueError("a mean needs at least one value of each seed")
    rng = np.random.default_rng(0)
    means = np.zeros(resamples)
    for one in values:
        data = np.asarray(one, dtype=np.float64)
        draws = rng.integers(0, data.size, (resamples, data.size))
        means += data[draws].mean(axis=1) / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    seeds = tuple(fmean(one) for one in values)
    return Estimate(fmean(seeds), float(low), float(high), seeds)


@dataclass(frozen=True)
class Results:
    """Everything that finished tasks left.

    Attributes:
        seeds: Those whose start is there.
        start: Measure -> values of the start.
        methods: Method -> measure -> values of the seeds that have run it.
        costs: Method -> seconds of training, or of answering, bytes of memory and what else was
            taken down, by those seeds.
        facts: What is measured of each seed's data.
        found: Method -> what its selection of tokens found, for methods that select, by seed.
    """

    seeds: tuple[int, ...]
    start: Mapping[str, Values]
    methods: Mapping[str, Mapping[str, Values]]
    costs: Mapping[str, Mapping[str, Sequence[float]]]
    facts: Sequence[Mapping[str, Any]]
    found: Mapping[str, Sequence[Mapping[str, Any]]]

    def of(self, method: str, measure: str) -> Estimate:
        """A measure of a method."""
        return estimate(self.methods[method][measure].values())

    def before(self, measure: str) -> Estimate:
        """A measure of the start."""
        return estimate(self.start[measure].values())

    def gain(self, method: str, measure: str = "right") -> Estimate:
        """A measure of a method minus that of the start, prompt by prompt."""
        return estimate(_differences(self.methods[method][measure], self.start[measure]))

    def difference(self, method: str, other: str, measure: str = "right") -> Estimate:
        """The same minus that of another method, over the seeds that have both."""
        return estimate(_differences(self.methods[method][measure], self.methods[other][measure]))

    def as_json(self) -> dict[str, Any]:
        """All estimates and costs, with what they were made by."""
        return {
            "seeds": list(self.seeds),
            "start": {name: self.before(name)._asdict() for name in _START},
            "methods": {
                name: {
                    "seeds": list(values["win"]),
                    **{measure: self.of(name, measure)._asdict() for measure in values},
                    **{cost: list(by_seed) for cost, by_seed in self.costs[name].items()},
                }
                for name, values in self.methods.items()
            },
            "found": {name: list(by_seed) for name, by_seed in self.found.items()},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
            },
        }


_START = ("accurate", "right", "length")


def gather(output: Path, seeds: Iterable[int], methods: Sequence[Method] = METHODS) -> Results:
    """Reads what the tasks of a run left.

    Args:
        output: Folder of the run.
        seeds: Those to read; one whose start is not finished is left out.
        methods: Those to look for.

    Raises:
        UserError: Nothing is finished yet.
    """
    folders = {seed: output / f"seed-{seed}" for seed in seeds}
    done = {seed: path for seed, path in folders.items() if (path / "facts.json").is_file()}
    if not done:
        raise UserError(f"{output} holds no finished seed; run `alignment compare` first")
    starts = {seed: _read(folder / "before.json") for seed, folder in done.items()}
    values, costs, found = {}, {}, {}
    for method in methods:
        places = {seed: folder / "methods" / method.name for seed, folder in done.items()}
        ran = {s: place for s, place in places.items() if (place / "measures.json").is_file()}
        if not ran:
            continue
        measures = {seed: _read(place / "measures.json") for seed, place in ran.items()}
        values[method.name] = {
            name: {seed: one[name] for seed, one in measures.items()}
            for name in MEASURES
            if all(name in one for one in measures.values())
        }
        if all("found" in one for one in measures.values()):
            found[method.name] = [one["found"] for one in measures.values()]
        longest = "adapter" if method.objective else "answers"
        taken = [_read(place / "memory.json") for place in ran.values()]
        costs[method.name] = {
            "seconds": [_read(place / RECORD)["seconds"][longest] for place in ran.values()],
            **{cost: [one[cost] for one in taken] for cost in taken[0]},
        }
    return Results(
        tuple(done),
        {name: {seed: one[name] for seed, one in starts.items()} for name in _START},
        values,
        costs,
        [_read(folder / "facts.json") for folder in done.values()],
        found,
    )


def commit() -> str:
    """The commit of this project, `-dirty` where it was changed since; else the release."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed copy may lie within another project's checkout
        return __version__
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__


def _differences(first: Values, second: Values) -> list[list[float]]:
    return [
        [one - other for one, other in zip(values, second[seed], strict=True)]
        for seed, values in first.items()
        if seed in second
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
