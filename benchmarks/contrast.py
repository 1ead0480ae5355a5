"""Contrast accuracy of every builder on the small world, against what its construction predicts.

    python -m benchmarks.contrast [--json FILE]

Programs that are right in a known share of cases stand in for generator and judge; whether the
chosen side of a pair is better is checked exactly. A pair with a right chosen and a wrong rejected
side counts 1, one whose sides are alike 0.5, the reverse 0. The cases lie in
`benchmarks/_contrast`, one file per builder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

from benchmarks import _contrast
from benchmarks._contrast.case import PACKAGE, Case, Result, measure

_HEAD = ("builder", "variant", "predicted", "measured", "standard error", "rows", "dropped", "why")


def cases() -> list[Case]:
    """All cases, builder by builder."""
    names = sorted(found.name for found in pkgutil.iter_modules(_contrast.__path__))
    modules = (importlib.import_module(f"{PACKAGE}.{name}") for name in names)
    return [case for module in modules for case in getattr(module, "CASES", ())]


def row(result: Result) -> str:
    """A result as a row of the table in docs/builders.md."""
    cells = (
        *(f"`{result.builder}`", result.variant, f"{result.predicted:.3f}"),
        *(f"{result.measured:.3f}", f"{result.error:.3f}", result.rows, result.dropped),
        result.why,
    )
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table; fails where a measured value is far from what was predicted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contrast", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--builders", nargs="+", help="only these")
    options = parser.parse_args(arguments)
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}", flush=True)
    results = []
    for case in cases():
        if options.builders is None or case.builder in options.builders:
            with contextlib.redirect_stdout(io.StringIO()):
                results.append(measure(case, options.prompts, options.seed))
            print(row(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    astray = [f"{result.builder} {result.variant}" for result in results if not result.agrees]
    if astray:
        raise SystemExit(f"more than four standard errors from the prediction: {', '.join(astray)}")


if __name__ == "__main__":
    main()
