"""The same as `benchmarks.step` on one CUDA GPU: an 8B-shaped Llama in bf16 with an adapter.

    python -m benchmarks.gpu [--data ultrafeedback ...] [--json FILE]

Weights are random, activations are recomputed on all sides, as both trainers do by default. Beside
tokens per second and peak memory stands MFU: the operations that the step has to do, over its time
and over what the GPU does at best. `benchmarks._operations` says what is counted; recomputation and
padding are not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks._measure import be_quiet, table
from benchmarks._operations import operations
from benchmarks.step import Result, compare, lines

PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second by the makers' data sheets, for a name that contains the key."""

EIGHT_BILLION: dict[str, Any] = {
    "vocabulary": 128_256,
    "hidden": 4096,
    "intermediate": 14_336,
    "layers": 32,
    "heads": 32,
    "kv_heads": 8,
    "device": "cuda",
    "dtype": "bfloat16",
    "checkpointing": True,
}
"""Llama 3.1 8B's shape."""


def peak_operations(name: str) -> float | None:
    """Operations per second of a GPU at best; None for one that is not listed."""
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def with_mfu(
    results: Mapping[str, Result], needed: Mapping[str, float], peak: float | None
) -> list[tuple[str, ...]]:
    """The table of `benchmarks.step` and a column of MFU."""
    header, *rows = lines(results)
    cells = [
        "?" if peak is None else f"{needed[row[0]] / results[row[0]].seconds.median / peak:.1%}"
        for row in rows
    ]
    return [(*header, "MFU"), *((*row, cell) for row, cell in zip(rows, cells, strict=True))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one table for each kind of data."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--data", nargs="+", default=["ultrafeedback", "512x128"])
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=4, help="of an epoch, which is a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, help="TFLOP/s of the GPU at best, where not known")
    options = parser.parse_args(arguments)
    be_quiet()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA GPU here, so there is nothing to measure")
        return
    if importlib.util.find_spec("trl") is None:
        print("benchmarks.gpu: trl is not installed, and both trainers are built on it")
        return
    report = [measure(data, options) for data in options.data]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one kind of data and prints its table."""
    from benchmarks._data import groups_of, sorted_batches
    from benchmarks._sides import SIDES, Shape

    shape = Shape(**EIGHT_BILLION)
    batches = sorted_batches(groups_of(data, 2), options.batch, options.steps)
    results = compare(shape, batches, options.rounds, SIDES)
    needed = {
        name: mean(operations(shape, batch, stored=side.stored) for batch in batches)
        for name, side in SIDES.items()
    }
    name = torch.cuda.get_device_name()
    peak = 1e12 * options.peak if options.peak else peak_operations(name)
    print(f"\n{data}, K=2, 8B-shaped Llama, {options.batch} pairs a step, {name}:")
    print(table(with_mfu(results, needed, peak)))
    return {
        "data": data,
        "device": name,
        "peak": peak,
        "operations": needed,
        "sides": {name: result.record() for name, result in results.items()},
    }


if __name__ == "__main__":
    main()
