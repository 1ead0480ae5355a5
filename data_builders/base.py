"""What all builders share: their options, and the way from a builder to a data set on disk."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignment.cli import say
from alignment.core.groups import CHOSEN, Group, RowError, group_from_row, row_from_group, text_of
from alignment.core.rows import read_rows
from alignment.llm.connect import CallOptions, connect, open_ledger, run_rows
from alignment.llm.engine import LLM
from alignment.llm.rows import MapReport, Reject, Row
from data_builders.statistics import PairStatistics, pair_statistics

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(kw_only=True)
class BuildOptions(CallOptions):
    """Options of every builder."""

    input: Path = field(metadata={"help": "file of rows to build from"})
    output: Path = field(metadata={"help": "file of pairs to write, JSON Lines"})
    model: str = field(
        metadata={"help": "model to ask: a name on the server, a folder or a hub id"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of the server; unset, the model runs here"}
    )


def build_dataset(
    options: BuildOptions, build: Callable[[Row, LLM], Awaitable[Group]]
) -> tuple[MapReport, PairStatistics]:
    """Runs a builder over its input and writes pairs, rejects and a report.

    Beside `<output>` stand `<output>.rejects.jsonl`, `<output>.report.json` and the ledger.

    Args:
        options: Where to read, write and ask.
        build: Makes the group of one row, or raises `Reject` or `CallError`.

    Raises:
        UserError: The input cannot be read, the output exists, or nothing came out.
    """
    report_file = Path(f"{options.output}.report.json")
    with open_ledger(options.output, options) as ledger:
        llm = connect(options.model, options.base_url, ledger, options)

        async def rows_of(row: Row) -> list[Row]:
            try:
                made = row_from_group(await build(row, llm))
                group_from_row(made)  # what training would refuse is no data
            except RowError as error:
                raise Reject(error.reason, str(error)) from None
            return [made]

        if not options.dry_run:
            report_file.unlink(missing_ok=True)
        report = run_rows(options, [llm], read_rows(options.input), rows_of, options.output)
    report.refuse_empty(options.input)
    statistics = pair_statistics(_sides(options.output))
    summary: dict[str, Any] = {
        "kept": report.kept,
        "dropped": dict(report.dropped),
        "statistics": statistics._asdict(),
        "usage": asdict(llm.usage),
        "options": {name: value for name, value in vars(options).items() if value is not None},
    }
    report_file.write_text(json.dumps(summary, indent=2, default=str) + "\n", encoding="utf-8")
    say(f"{options.output}: {report}")
    say(
        f"chosen {statistics.chosen_length:.0f} characters, rejected "
        f"{statistics.rejected_length:.0f}; chosen is longer in {statistics.length_win_rate:.0%}; "
        f"Jaccard {statistics.jaccard:.3f}, edit distance {statistics.edit_distance:.0f} "
        f"({statistics.normalised_edit_distance:.3f} of the longer side)"
    )
    say(str(llm.usage))
    return report, statistics


def _sides(path: Path) -> Iterator[tuple[str, str]]:
    """The chosen and the rejected text of each pair in a file."""
    for _, row in read_rows(path):
        first, second = group_from_row(row).responses
        chosen, rejected = (first, second) if first.role == CHOSEN else (second, first)
        yield text_of(chosen.content), text_of(rejected.content)
