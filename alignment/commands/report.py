"""Write a run's report: one HTML file with settings, data, curves, evaluation, time and machine.

alignment report runs/quickstart --output quickstart.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from alignment.cli import check_counts, parse, run, say
from alignment.pages.document import write_page
from alignment.reporting.report import gather


@dataclass(kw_only=True)
class Options:
    """Options of `alignment report`."""

    run: Path = field(
        metadata={"help": "folder of a training, an evaluation, a loop or a quickstart, or a JSON"}
    )
    output: Path | None = field(
        default=None, metadata={"help": "file to write; report.html in the folder if unset"}
    )
    examples: int = field(
        default=12, metadata={"help": "rows of data and answers to show, of each kind"}
    )
    seed: int = field(default=0, metadata={"help": "of their draw"})

    def __post_init__(self) -> None:
        check_counts(self, "examples")


def main(argv: list[str]) -> None:
    """`alignment report`."""
    options = parse(Options, argv, "alignment report", __doc__, bare="run")
    report = gather(options.run, options.examples, options.seed)
    output = options.output
    if output is None:
        is_folder = options.run.is_dir()
        output = options.run / "report.html" if is_folder else options.run.with_suffix(".html")
    write_page(output, report.page())
    say(f"written to {output}")


if __name__ == "__main__":
    run(main)
