"""What a build has made: the figures of its report, its card and its last lines."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment import __version__
from alignment.cli import module_of, words_of
from alignment.core.rows import read_rows
from alignment.llm.engine import LLM
from alignment.llm.options import CallOptions
from alignment.llm.redaction import redact_all
from alignment.llm.rows import MapReport
from data_builders.overlap import EvalPrompts
from data_builders.statistics import Collector, PairStatistics

LENGTH_TEACHER = 0.9
"""Share of pairs whose chosen side is longer, from which on a build says so."""

_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


def examine(output: Path, evaluation: EvalPrompts | None) -> dict[str, Any]:
    """Reads a data set and says what it is like.

    Args:
        output: The file of rows.
        evaluation: Prompts that should not be among its prompts.

    Returns:
        `builder` and `version` of its first row, `statistics`, and `overlap`: every row whose
        prompt is also an evaluation prompt.
    """
    collector = Collector()
    overlap: list[dict[str, Any]] = []
    first: Mapping[str, Any] | None = None
    for index, (_, row) in enumerate(read_rows(output)):
        group = collector.add(row)
        first = group.meta if first is None else first
        found = evaluation.find(group.prompt) if evaluation is not None else None
        if found is not None:
            overlap.append({"row": index, "how": found.how, "source": found.source})
    return {
        "builder": (first or {}).get("builder"),
        "version": (first or {}).get("version"),
        "statistics": collector.statistics().as_dict(),
        "overlap": overlap if evaluation is not None else None,
        "evaluation_prompts": evaluation.count if evaluation is not None else None,
    }


def summarise(
    options: CallOptions,
    report: MapReport,
    llms: Mapping[str, LLM],
    found: Mapping[str, Any],
    dollars: float,
) -> dict[str, Any]:
    """All figures of a build, as `<output>.report.json` holds them.

    Args:
        options: Of the builder.
        report: What became of the input.
        llms: Role -> model.
        found: What `examine` has found.
        dollars: What the calls on the ledger have cost, those of earlier runs included.
    """
    set_options = {name: value for name, value in vars(options).items() if value is not None}
    summary = {
        "kept": report.kept,
        "written": report.written,
        "dropped": dict(report.dropped.most_common()),
        "partial": dict(report.partial.most_common()),
        **found,
        "models": {role: llm.source for role, llm in llms.items()},
        "usage": {role: asdict(llm.usage) for role, llm in llms.items()},
        "dollars": round(dollars, 6),
        "versions": {"contrastive-alignment": __version__, "python": platform.python_version()},
        "command": command_of(options, found["builder"] or "NAME"),
        "options": set_options,
    }
    plain = json.loads(json.dumps(summary, default=str))
    return dict(redact_all(_without_user_info(plain)))


def command_of(options: CallOptions, builder: str) -> str:
    """The command line that repeats a build: all options that differ from their defaults.

    Args:
        options: Of the builder, or of a tool of `alignment data` that makes rows as builders do.
        builder: Name of the builder; a tool is named by its file.
    """
    package, _, tool = module_of(options).rpartition(".")
    name = ["data", tool] if package == "alignment.data_tools" else ["build", builder]
    return shlex.join(["alignment", *name, *words_of(options, ("resume", "overwrite"))])


def told(summary: Mapping[str, Any]) -> Iterator[str]:
    """The lines that a build ends with, those about its rows."""
    statistics = summary["statistics"]
    if statistics["pairs"] is not None:
        pairs = PairStatistics(**statistics["pairs"])
        yield str(pairs)
        if pairs.length_win_rate >= LENGTH_TEACHER:
            yield "the chosen side is almost always the longer one: these pairs teach length"
    groups = statistics["groups"]
    if groups is not None:
        yield (
            f"{groups['groups']} groups of {groups['smallest']} to {groups['largest']}; ties for "
            f"the best {groups['tie_best']}, for the worst {groups['tie_worst']}, no gap "
            f"{groups['no_gap']}"
        )
    near = statistics["near_duplicates"]
    yield (
        f"{near['prompts']} prompts and {near['responses']} responses nearly repeat those of an "
        "earlier row"
    )
    if summary["overlap"] is not None:
        rows = ", ".join(str(hit["row"]) for hit in summary["overlap"][:10])
        more = ", ..." if len(summary["overlap"]) > 10 else ""
        yield (
            f"{len(summary['overlap'])} rows have one of {summary['evaluation_prompts']} "
            f"evaluation prompts{f': {rows}{more}' if rows else ''}"
        )


def _without_user_info(value: Any) -> Any:
    """A JSON value whose addresses hold no user name and password."""
    if isinstance(value, str):
        return _USER_INFO.sub("", value)
    if isinstance(value, list):
        return [_without_user_info(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_user_info(item) for name, item in value.items()}
    return value
