"""Plots of a run: loss, log-ratios, and the win rate with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

CHOSEN, REJECTED, NEUTRAL = "#1f77b4", "#d62728", "#444444"
TRAINING_TITLES = {"sft": "Learning from demonstrations (SFT)", "adapter": "Training on pairs"}

Rows = Sequence[Mapping[str, Any]]


def draw(folder: Path, metrics: Rows, results: Mapping[str, Any]) -> list[Path]:
    """Draws all plots of a run.

    Args:
        folder: Where to.
        metrics: The rows of `metrics.jsonl`: `stage`, `step`, and what was logged.
        results: What `results.json` holds.

    Returns:
        The files written.
    """
    trained = [row for row in metrics if row["stage"] == "adapter"]
    figures = {
        "loss": _loss(metrics),
        "logratios": _sides(trained),
        "win_rate": _win_rate(results),
        "summary": _summary(trained, results),
    }
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=150)
    return paths


def _loss(metrics: Rows) -> Figure:
    stages = [stage for stage in TRAINING_TITLES if any(row["stage"] == stage for row in metrics)]
    figure, axes = _figure(len(stages))
    for stage, ax in zip(stages, axes, strict=True):
        steps, losses = _series([row for row in metrics if row["stage"] == stage], "loss")
        ax.plot(steps, losses, color=NEUTRAL, marker=".")
        per_token = stage == "sft"
        ax.set(
            title=TRAINING_TITLES[stage],
            xlabel="optimiser step",
            ylabel="loss (nats per token)" if per_token else "loss (mean over pairs)",
        )
    return figure


def _sides(metrics: Rows) -> Figure:
    figure, (ax,) = _figure(1)
    _draw_sides(ax, metrics)
    return figure


def _win_rate(results: Mapping[str, Any]) -> Figure:
    figure, (ax,) = _figure(1, height=2.4)
    _draw_win_rate(ax, results)
    return figure


def _summary(metrics: Rows, results: Mapping[str, Any]) -> Figure:
    """Training and its result beside each other."""
    figure, (left, right) = _figure(2, height=3.4)
    _draw_sides(left, metrics)
    _draw_win_rate(right, results)
    right.set(title="Trained model against its start", xlabel="win rate, with a 95% interval")
    return figure


def _draw_sides(ax: Axes, metrics: Rows) -> None:
    """Log-ratios to the starting model; log-probs where the objective has no reference."""
    kind, label = "logratios", "log-ratio to the start (nats)"
    if not any(f"{kind}/chosen" in row for row in metrics):
        kind, label = "logps_per_token", "log-prob (nats per token)"
    for side, colour in (("chosen", CHOSEN), ("rejected", REJECTED)):
        ax.plot(*_series(metrics, f"{kind}/{side}"), color=colour, marker=".", label=side)
    if kind == "logratios":
        ax.axhline(0.0, color=NEUTRAL, linewidth=0.8, linestyle="--", label="start")
    ax.set(title="Where the two sides move", xlabel="optimiser step", ylabel=label)
    ax.legend()


def _draw_win_rate(ax: Axes, results: Mapping[str, Any]) -> None:
    low, high = results["win_rate_ci"]
    rate = results["win_rate"]
    ax.errorbar([rate], [0], xerr=[[rate - low], [high - rate]], fmt="o", color=CHOSEN, capsize=6)
    ax.annotate(
        f"{rate:.3f}  [{low:.3f}, {high:.3f}]",
        (rate, 0),
        (0, 14),
        textcoords="offset points",
        ha="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
    )
    ax.axvline(0.5, color=NEUTRAL, linestyle="--", label="no difference")
    ax.set(
        title=f"Trained model against its start, {results['n_prompts']} held-out prompts",
        xlabel="win rate, a tie counts one half (95% bootstrap interval over prompts)",
        xlim=(0.0, 1.0),
        ylim=(-1.0, 1.0),
        yticks=[],
    )
    ax.legend(loc="lower left")


def _figure(panels: int, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.4, 4.6 * panels), height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def _series(metrics: Rows, key: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[key]) for row in metrics if key in row]
    return [step for step, _ in found], [value for _, value in found]
