"""The report of a run, whatever kind of run it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.cli import UserError
from alignment.pages.blocks import Block, Code, Section
from alignment.pages.document import render
from alignment.reporting import evaluation, training
from alignment.reporting.data import data_section
from alignment.reporting.figures import duration, facts, load_json, percent

STAGES = "stages.json"
MAIN = "adapter"
"""The folder of a quickstart's main training run."""


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        title: The run's name.
        told: What kind of run it is.
        subtitle: A sentence on it; empty where nothing more is known.
        sections: Its parts.
    """

    title: str
    told: str
    subtitle: str
    sections: list[Section]

    def page(self) -> str:
        """The report as a page."""
        return render("report.html", **vars(self))


def gather(run: Path, examples: int, seed: int) -> Report:
    """Reads all that a run has left.

    Args:
        run: Folder of a training, an evaluation or a quickstart, or an evaluator's JSON.
        examples: How many rows and answers to show of each kind.
        seed: Of their draw.

    Raises:
        UserError: It is none of these, or a file of it is damaged.
    """
    try:
        return _gather(run, examples, seed)
    except KeyError as error:
        raise UserError(
            f"a file of {run} lacks {error}, so it is not one that this release writes; run the "
            "command anew that wrote it"
        ) from None


def _gather(run: Path, examples: int, seed: int) -> Report:
    name = run.resolve().name
    if (run / STAGES).is_file():
        return Report(name, "Run in stages", "", list(_stages(run, examples, seed)))
    if training.is_training(run):
        told = load_json(run / training.RECORD) if (run / training.RECORD).is_file() else {}
        parts = list(training.sections(run, examples, seed))
        return Report(name, "Training", _subtitle(told), parts)
    if evaluation.is_evaluation(run):
        return Report(name, "Evaluation", "", list(evaluation.sections(run, examples, seed)))
    if not run.exists():
        raise UserError(f"no such run: {run}")
    raise UserError(
        f"{run} holds no run: a training leaves {training.METRICS}, an evaluation "
        f"{evaluation.RESULTS}, a quickstart {STAGES}"
    )


def _subtitle(record: Mapping[str, Any]) -> str:
    if not record:
        return ""
    what = "an adapter" if record["model"]["adapter"] else "all weights"
    start = record["model"]["start"] or "a model in memory"
    return f"{record['objective']['name']} trained {what} from {start}."


def _stages(run: Path, examples: int, seed: int) -> Iterator[Section]:
    """The result first, then how it came about: answers, pairs, training."""
    results = load_json(run / "results.json") if (run / "results.json").is_file() else {}
    stages = load_json(run / STAGES)
    yield Section("Result", list(_result(results, stages)), list(_headline(results)))
    folders = sorted(path for path in run.iterdir() if path.is_dir())
    evaluations = [path for path in folders if evaluation.is_evaluation(path)]
    for path in evaluations:
        told = "" if len(evaluations) == 1 else path.name
        yield from _named(told, evaluation.sections(path, examples, seed))
    yield data_section("Pairs", [str(run / "pairs.jsonl")], examples, seed)
    trainings = [path for path in folders if training.is_training(path)]
    for path in sorted(trainings, key=lambda path: path.name != MAIN):
        told = "" if path.name == MAIN else path.name
        yield from _named(told, training.sections(path, 0, seed))


def _named(told: str, sections: Iterable[Section]) -> Iterator[Section]:
    """Sections of one of several runs, under names of their own."""
    for section in sections:
        yield replace(section, name=f"{told}: {section.name.lower()}") if told else section


def _headline(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "win_rate_ci" not in results:
        return
    low, high = results["win_rate_ci"]
    yield f"{results['win_rate']:.3f}", "win rate over the start"
    yield f"{low:.3f} to {high:.3f}", "95% interval"
    if results.get("accuracy_before") is not None:
        before, after = (percent(results[f"accuracy_{when}"]) for when in ("before", "after"))
        yield f"{before} \N{RIGHTWARDS ARROW} {after}", "accuracy of sampled answers"
    yield f"{results['n_prompts']:,}", "held-out prompts"
    yield duration(sum(results["seconds"].values())), "time of all stages"


def _result(results: Mapping[str, Any], stages: Mapping[str, Any]) -> Iterator[Block]:
    seconds, settings = stages["seconds"], stages["settings"]
    times = [duration(seconds[name]) if name in seconds else "not done" for name in settings]
    yield facts("Time of the stages", list(zip(settings, times, strict=True)))
    if results:
        known = ("pairs", "rows_without_pair", "objective", "objective_kwargs", "seed")
        yield facts("", [(name.replace("_", " "), results.get(name)) for name in known])
        yield facts("Versions", list(results.get("versions", {}).items()))
    commands = [of["command"] for of in settings.values() if "command" in of]
    yield Code("Commands of the stages", "\n\n".join(f"alignment {words}" for words in commands))
