"""The curves of a training run, of whatever it has logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from alignment.pages.charts import Chart, Point, Series, Tone, chart

Logs: TypeAlias = Sequence[Mapping[str, Any]]
"""The lines of `metrics.jsonl`, oldest first."""

CLOCK = ("_runtime", "_per_second")
"""How the names of times end."""

_SIDES: tuple[tuple[str, str, str], ...] = (
    ("logratios", "Log-ratio to the reference", "nats"),
    ("logps_per_token", "Log-probability", "nats per token"),
    ("logps_last_token", "Log-probability of the last token", "nats"),
    ("rewards", "Implicit rewards", ""),
)
"""Metrics that both sides of a contrast have: prefix, title, unit."""
_SINGLE = {
    "rewards/margins": "Margin of the implicit rewards",
    "rewards/accuracies": "Accuracy of the implicit rewards",
    "grad_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
    "probe/stop_rate": "Share of the probe's answers that end",
    "probe/length": "Length of the probe's answers in tokens",
    "probe/repetition": "Repeated share of the probe's answers",
}
_NO_CURVE = ("step", "epoch", "loss", "num_tokens", "total_flos", "train_loss", "verdicts")
_SAID_ELSEWHERE = ("eval_", "train_", "logps/", "logratios_per_token/")
"""Evaluations, totals, and what other curves show: sums over a response say what log-ratios say,
log-ratios per token what log-probs per token do."""


def curves(logs: Logs, alarms: Sequence[tuple[float, str]] = ()) -> list[Chart]:
    """The curves of a run: loss and sides first, whatever else was logged after."""
    found = [chart("Loss", _both(logs, "loss"), alarms=alarms)]
    drawn = {"loss"}
    for prefix, title, unit in _SIDES:
        names = [f"{prefix}/{side}" for side in ("chosen", "rejected")]
        tones: tuple[Tone, Tone] = ("chosen", "rejected")
        lines = [
            Series(name.rpartition("/")[2], _points(logs, name), tone)
            for name, tone in zip(names, tones, strict=True)
        ]
        found.append(chart(title, lines, unit, alarms))
        drawn.update(names)
    for name, title in _SINGLE.items():
        found.append(chart(title, _both(logs, name)))
        drawn.add(name)
    others = dict.fromkeys(key for entry in logs for key in entry if _is_curve(key, drawn))
    found += [chart(name, _both(logs, name)) for name in others]
    return [made for made in found if made is not None]


def _is_curve(key: str, drawn: set[str]) -> bool:
    is_known = key in drawn or key in _NO_CURVE
    return not is_known and not key.startswith(_SAID_ELSEWHERE) and not key.endswith(CLOCK)


def _both(logs: Logs, name: str) -> list[Series]:
    """A metric in training, and in evaluation where it was measured there."""
    lines: list[Series] = [Series("training", _points(logs, name))]
    evaluated = _points(logs, f"eval_{name}")
    if evaluated:
        lines.append(Series("evaluation", evaluated, "evaluation"))
    return [line for line in lines if line.points]


def _points(logs: Logs, name: str) -> list[Point]:
    return [
        Point(float(entry["step"]), float(entry[name]))
        for entry in logs
        if isinstance(entry.get(name), int | float) and "step" in entry
    ]


def not_finite(logs: Logs) -> list[str]:
    """Metrics and steps of values that are no number."""
    return sorted(
        {
            f"{key} at step {entry.get('step')}"
            for entry in logs
            for key, value in entry.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
    )
