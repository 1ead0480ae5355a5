"""What a finished run says: `metrics.jsonl`, `results.json`, plots and a short table."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.rows import prompt_of
from alignment.quickstart import world

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "trl", "peft")
TRAININGS = {"sft": "start", "adapter": "adapter"}
"""Stage that trains -> its folder."""
_JUDGED = ("win_rate", "win_rate_ci", "n_prompts", "wins", "losses", "ties", "unjudged")


def report(
    folder: Path,
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
    *,
    release: str,
    is_world: bool,
) -> dict[str, Any]:
    """Gathers the results of all stages and writes them.

    Args:
        folder: Of the run.
        seconds: Wall time by stage.
        facts: What else to record: seed, objective.
        release: Version of this project.
        is_world: Whether a program can tell right answers from wrong ones.

    Returns:
        What `results.json` holds.
    """
    judged = json.loads((folder / "judged/results.json").read_text(encoding="utf-8"))
    built = json.loads((folder / "pairs.jsonl.report.json").read_text(encoding="utf-8"))
    answers = folder / "answers"
    results = {
        **{name: judged[name] for name in _JUDGED},
        "accuracy_before": accuracy(answers / "before.jsonl") if is_world else None,
        "accuracy_after": accuracy(answers / "after.jsonl") if is_world else None,
        "pairs": built["kept"],
        "rows_without_pair": built["dropped"],
        **facts,
        "judge": judged["judge"],
        "seconds": dict(seconds),
        "versions": {
            "contrastive-alignment": release,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }
    metrics = list(_metrics(folder))
    _write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in metrics))
    _write(folder / "results.json", json.dumps(results, indent=2) + "\n")
    _draw(folder, metrics, results)
    return results


def accuracy(answers: Path) -> float:
    """The share of right answers in a file of the world."""
    rows = [row for _, row in read_rows(answers)]
    rights = [world.is_right(as_text(prompt_of(row)), row["response"]) for row in rows]
    return sum(rights) / len(rights)


def table(results: Mapping[str, Any]) -> list[str]:
    """The lines to show at the end of a run."""
    rate, (low, high) = results["win_rate"], results["win_rate_ci"]
    rows = {
        "pairs built": f"{results['pairs']}",
        "held-out prompts": f"{results['n_prompts']}",
        "win rate over the start": f"{rate:.3f}, 95% interval {low:.3f} to {high:.3f}",
        "wins, losses, ties": "{wins}, {losses}, {ties}".format(**results),
    }
    if results["accuracy_before"] is not None:
        before, after = results["accuracy_before"], results["accuracy_after"]
        rows["accuracy of sampled answers"] = f"{before:.3f} -> {after:.3f}"
    rows["seconds"] = f"{sum(results['seconds'].values()):.0f}"
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]


def _metrics(folder: Path) -> Iterator[dict[str, Any]]:
    for stage, name in TRAININGS.items():
        path = folder / name / "metrics.jsonl"
        if path.is_file():
            yield from ({"stage": stage, **row} for _, row in read_rows(path))


def _draw(folder: Path, metrics: list[dict[str, Any]], results: Mapping[str, Any]) -> None:
    try:
        from alignment.quickstart.plots import draw
    except ImportError:
        logger.warning("no plots: install matplotlib, which comes with the extra `report`")
    else:
        draw(folder, metrics, results)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
