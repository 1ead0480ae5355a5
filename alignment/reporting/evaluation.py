"""An evaluation, by the evaluator that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from alignment.pages.blocks import Note, Section
from alignment.reporting.agreement import tell_agreement
from alignment.reporting.figures import facts, load_json
from alignment.reporting.judging import Report
from alignment.reporting.loop import tell_loop
from alignment.reporting.mt_bench import tell_mt_bench
from alignment.reporting.translation import tell_translation
from alignment.reporting.winrates import tell_alpaca_eval, tell_winrate
from eval.bundle import MANIFEST

RESULTS = "results.json"

Tell: TypeAlias = Callable[[Report, Path, int, int], Iterator[Section]]
"""The sections of a report, given its folder, how many answers to show, and a seed."""

KINDS: tuple[tuple[frozenset[str], Tell], ...] = (
    (frozenset({"length_controlled_winrate", "discrete_win_rate"}), tell_alpaca_eval),
    (frozenset({"models", "intervals"}), tell_mt_bench),
    (frozenset({"judges", "labels", "subsets"}), tell_agreement),
    (frozenset({"directions", "average"}), tell_translation),
    (frozenset({"rounds", "best_round"}), tell_loop),
    (frozenset({"win_rate_ci", "n_prompts"}), tell_winrate),
    (frozenset({"pairs", "paired_tests"}), tell_winrate),
)
"""Keys by which the report of an evaluator is known, and what tells it."""


def is_evaluation(path: Path) -> bool:
    """Whether a path is an evaluator's folder, or a report that one wrote as JSON."""
    if path.is_dir():
        return any((path / name).is_file() for name in (RESULTS, MANIFEST))
    return path.suffix == ".json" and path.is_file() and _tell(load_json(path)) is not None


def sections(path: Path, examples: int, seed: int) -> Iterator[Section]:
    """The sections of an evaluation.

    Args:
        path: Its folder, or its report.
        examples: How many answers to show.
        seed: Of their draw.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        told = f"{path} has no {RESULTS}: the run was not finished, and --resume goes on with it."
        yield Section("Evaluation", [Note(told, is_warning=True)])
        return
    report = load_json(file)
    tell = _tell(report)
    if tell is not None:
        yield from tell(report, file.parent, examples, seed)
        return
    plain = [(name, value) for name, value in report.items() if not isinstance(value, dict)]
    yield Section("Evaluation", [facts("", plain)])


def _tell(report: Report) -> Tell | None:
    return next((tell for mark, tell in KINDS if mark <= report.keys()), None)
