"""Runs vector files through the objectives: one row per file, and a non-zero exit on any miss."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.conformance.runner import Report, VectorError, adapters, run_file, vector_files


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the files named; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE_OR_FOLDER")
    paths = parser.parse_args(arguments).paths
    torch.set_num_threads(1)
    problems: list[str] = []
    reports: list[Report] = []
    try:
        if not paths:
            raise VectorError("no vector file given: name files, or folders that hold *.json files")
        known, files = adapters(), vector_files(paths)
    except VectorError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for path in files:
        try:
            reports.append(run_file(path, known))
        except VectorError as error:
            problems.append(f"error: {error}")
    sys.stdout.write(table(reports))
    for report in reports:
        problems += [f"miss: {line}" for line in report.misses]
    sys.stderr.write("".join(f"{line}\n" for line in problems))
    return 1 if problems else 0


def table(reports: Sequence[Report]) -> str:
    """One row per file; what an adapter does not compute is named at the end of its row."""
    width = max((len(str(report.path)) for report in reports), default=4)
    lines = [f"{'file':{width}}  {'objective':18} {'cases':>5} {'passed':>6} {'worst error':>11}"]
    for report in reports:
        unchecked = ", ".join(sorted(report.unchecked))
        note = f"  unchecked: {unchecked}" if unchecked else ""
        lines.append(
            f"{report.path!s:{width}}  {report.objective:18} {report.cases:5d} {report.passed:6d} "
            f"{report.worst:11.1e}{note}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
