"""A training run: how it was set up, its curves with what the log warned of, what it took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.pages.blocks import Block, Charts, Code, Note, Section, Table, present
from alignment.pages.charts import number
from alignment.reporting.curves import CLOCK, Logs, curves, not_finite
from alignment.reporting.data import data_section
from alignment.reporting.figures import duration, facts, load_json, shown, size

METRICS, RECORD = "metrics.jsonl", "run.json"

_SHOWN_CHECKPOINTS = 50


class Run:
    """What a training run has left in its folder.

    Attributes:
        folder: Its folder.
        record: `run.json`; empty where the run has none.
        logs: `metrics.jsonl`, oldest first.
        broken: How many lines of it a crash has cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = folder / RECORD
        self.record = load_json(record) if record.is_file() else {}
        metrics = folder / METRICS
        lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
        self.logs: Logs = [entry for entry in map(_log, lines) if entry is not None]
        self.broken = len(lines) - len(self.logs)

    @property
    def steps(self) -> int:
        """Steps that were logged."""
        return max((int(entry["step"]) for entry in self.logs), default=0)


def _log(line: bytes) -> dict[str, Any] | None:
    """A line of the metrics; None for what a crash has left of one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry else None


def is_training(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / METRICS).is_file() or (folder / RECORD).is_file()


def sections(folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """The sections of a run.

    Args:
        folder: Its folder.
        examples: How many rows of its data to show; 0 leaves the data to another section.
        seed: Of their draw.
    """
    run = Run(folder)
    yield Section("Training", list(_training(run)), list(_headline(run)))
    yield Section("Configuration", list(_configuration(run)))
    if examples:
        data = run.record.get("data", {})
        yield data_section("Data", data.get("train", []), examples, seed)
    yield Section("Time and machine", list(_costs(run)))


def _headline(run: Run) -> Iterator[tuple[str, str]]:
    """Value and what it is."""
    last = {key: value for entry in run.logs for key, value in entry.items()}
    for key, told in (
        ("eval_loss", "loss, evaluation"),
        ("eval_rewards/accuracies", "accuracy of implicit rewards, evaluation"),
        ("loss", "loss, last log"),
        ("rewards/accuracies", "accuracy of implicit rewards, last log"),
    ):
        if key in last:
            yield number(last[key]), told
    yield f"{run.steps:,}", "steps"
    if run.record.get("seconds") is not None:
        yield duration(run.record["seconds"]), "time of the steps"


def _configuration(run: Run) -> Iterator[Block]:
    record = run.record
    if not record:
        yield Note(f"The folder has no {RECORD}, so its settings are not known.")
        return
    objective, model, how = record["objective"], record["model"], record["run"]
    adapter = model["adapter"]
    besides = "" if adapter is None else ", those of the adapter included"
    yield facts(
        "",
        [
            ("objective", objective["method"]),
            ("paper", objective["paper"]),
            ("starts from", model["start"]),
            (
                "architecture",
                f"{model['architecture']}, {model['parameters']:,} parameters{besides}",
            ),
            ("trained", "all weights" if adapter is None else f"adapter: {shown(adapter)}"),
            ("groups in a step", how["batch_size"]),
            ("layout of a batch", record["layout"]),
            ("seed", how["seed"]),
            ("training data", record["data"]["train"]),
            ("evaluation data", record["data"]["eval"]),
            ("groups trained on", record["data"]["kept"]),
            ("rows rejected", record["data"]["rejected"]),
            ("rows noticed", record["data"]["notices"]),
        ],
    )
    if objective["formula"]:
        yield Code("Formula", objective["formula"])
    if record["command"]:
        yield Code("Command", record["command"])
    else:
        yield Note("The run was started by a program, so there is no command line.")
    settings = [(f"{name}", value) for name, value in record["settings"].items()]
    yield facts("Settings other than the defaults", settings)


def _training(run: Run) -> Iterator[Block]:
    if run.broken:
        told = f"Lines of {METRICS} that a crash has cut short: {run.broken}."
        yield Note(told, is_warning=True)
    if not run.logs:
        yield Note(f"There is no {METRICS} with logs, so there are no curves.")
        return
    warned = [(entry["step"], told) for entry in run.logs for told in entry.get("verdicts", ())]
    for step, told in warned:
        yield Note(f"Step {step}: {told}", is_warning=True)
    if not warned:
        yield Note("The log warned of nothing.")
    alarms = [(float(step), told.partition(":")[0]) for step, told in warned]
    charts = curves(run.logs, alarms)
    if charts:
        yield Charts(charts)
    if lost := not_finite(run.logs):
        yield Note(f"Values that are no number: {', '.join(lost)}.", is_warning=True)
    evaluations = _evaluations(run.logs)
    if evaluations is not None:
        yield evaluations
    for name in ("rejects.jsonl", "eval_rejects.jsonl", "offending_rows.jsonl"):
        if (run.folder / name).is_file():
            count = sum(1 for _ in read_rows(run.folder / name))
            yield Note(f"Rows that {name} in the run's folder lists with reasons: {count:,}.")


def _evaluations(logs: Logs) -> Table | None:
    """What was measured on the evaluation data, first and last."""
    measured = [entry for entry in logs if any(_is_measure(key) for key in entry)]
    if not measured:
        return None
    first, last = measured[0], measured[-1]
    rows = [
        [key.removeprefix("eval_"), shown(first.get(key)), shown(last[key])]
        for key in last
        if _is_measure(key)
    ]
    head = ["", f"step {first['step']}", f"step {last['step']}"]
    return Table("On the evaluation data", head, rows)


def _is_measure(key: str) -> bool:
    return key.startswith("eval_") and not key.endswith(CLOCK)


def _costs(run: Run) -> Iterator[Block]:
    record = run.record
    if record:
        seconds, tokens, machine = record["seconds"], record["tokens"], record["machine"]
        rate = f"{tokens / seconds:,.0f}" if seconds and tokens else None
        yield facts(
            "",
            [
                ("steps", f"{record['steps']:,} of {record['steps_planned']:,}"),
                ("tokens computed", tokens),
                ("time of the steps", None if seconds is None else duration(seconds)),
                ("tokens per second", rate),
                ("device", machine["device"]),
                ("processes", f"{machine['processes']}, {record['run']['engine']}"),
                ("cores", machine["cores"]),
                ("system", machine["system"]),
                ("precision", machine["precision"]),
                (
                    "peak memory of the device",
                    None
                    if machine["peak_memory_bytes"] is None
                    else size(machine["peak_memory_bytes"]),
                ),
            ],
        )
        if seconds is None:
            yield Note("The run did not come to its end, so its time is not known.")
        yield facts("Versions", list(record["versions"].items()))
    else:
        yield Note(f"The folder has no {RECORD}, so machine and versions are not known.")
    yield from present([_checkpoints(run.folder)])


def _checkpoints(folder: Path) -> Block:
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    rows = []
    for path in found[-_SHOWN_CHECKPOINTS:]:
        manifest = path / "checkpoint.json"
        if not manifest.is_file():
            rows.append([path.name, "unknown: it was not finished", ""])
            continue
        about = load_json(manifest)
        total = sum(size_ for size_, _ in about["files"].values())
        rows.append([path.name, "yes" if about["resumable"] else "weights alone", size(total)])
    if not rows:
        return Note("No checkpoint is kept in the folder.")
    return Table("Checkpoints", ["", "can be resumed", "size"], rows)
