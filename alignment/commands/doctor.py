"""Look at packages, machine, model and network, and say what to mend.

    alignment doctor [--model MODEL] [--output-dir FOLDER] [--json]

Ends with 1 where something is broken; a warning is something that works, but not as one may think.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alignment.cli import parse, say
from alignment.diagnosis.collective import check_all_reduce
from alignment.diagnosis.finding import Finding
from alignment.diagnosis.machine import check_room, check_torch
from alignment.diagnosis.model import check_model
from alignment.diagnosis.versions import check_versions


@dataclass(kw_only=True)
class Options:
    """Options of `alignment doctor`."""

    model: str | None = field(
        default=None, metadata={"help": "a model to look at as well, by folder or hub id"}
    )
    output_dir: Path = field(default=Path("runs"), metadata={"help": "where runs will be saved"})
    all_reduce: bool = field(
        default=True, metadata={"help": "let processes sum a tensor, one per GPU or two"}
    )
    processes: int | None = field(default=None, metadata={"help": "how many of them"})
    json: bool = field(default=False, metadata={"help": "print findings as a JSON list"})

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ValueError("`--processes` must be at least 1")


def main(argv: list[str]) -> None:
    """`alignment doctor`.

    Raises:
        SystemExit: 1, where something is broken.
    """
    options = parse(Options, argv, "alignment doctor", __doc__)
    findings = []
    for finding in examine(options):
        findings.append(finding)
        if not options.json:
            say(str(finding))
    broken = sum(finding.level == "broken" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if options.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        say(f"{len(findings)} findings: {broken} broken, {warnings} warnings")
    if broken:
        sys.exit(1)


def examine(options: Options) -> Iterator[Finding]:
    """All findings, the quick ones first."""
    yield from check_versions()
    yield from check_torch()
    yield from check_room(options.output_dir)
    if options.model is not None:
        yield from check_model(options.model)
    if options.all_reduce:
        yield from check_all_reduce(options.processes)
