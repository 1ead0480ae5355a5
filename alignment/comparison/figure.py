"""The figure of a comparison: what was won, where both sides went, and what it cost."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment.comparison.methods import METHODS
from alignment.comparison.results import Results

BLUE, RED, GREY = "#1f77b4", "#d62728", "#777777"


def draw(results: Results, path: Path) -> None:
    """Draws the eight methods, or whatever was run where none of them was.

    Of ways to decode there are win rates alone: they are no models whose log-probs can be asked.

    Args:
        results: Of the comparison.
        path: The file to write.
    """
    names = [m.name for m in METHODS if m.part == "main" and m.name in results.methods]
    names = names or list(results.methods)
    figure = Figure(figsize=(13, 1.8 + 0.42 * len(names)), layout="constrained")
    wins, sides, cost = figure.subplots(1, 3)
    _wins(wins, results, names)
    _sides(sides, results, names)
    _cost(cost, results, names)
    for ax in (wins, sides):
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def _wins(ax: Axes, results: Results, names: list[str]) -> None:
    for place, name in enumerate(names):
        found = results.of(name, "win")
        ax.plot([found.low, found.high], [place, place], color=BLUE, linewidth=2)
        ax.plot(found.seeds, [place] * len(found.seeds), ".", color=GREY, markersize=5)
        ax.plot(found.mean, place, "o", color=BLUE)
    ax.axvline(0.5, color=GREY, linestyle="--", linewidth=0.8)
    ax.set(title="Win rate over the start", xlabel="a tie counts 1/2; bar: 95%, dots: seeds")


def _sides(ax: Axes, results: Results, names: list[str]) -> None:
    for shift, side, colour in ((-0.18, "chosen", BLUE), (0.18, "rejected", RED)):
        there = [place for place, name in enumerate(names) if side in results.methods[name]]
        means = [results.of(names[place], side).mean for place in there]
        ax.barh([place + shift for place in there], means, 0.34, color=colour, label=side)
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set(title="Where both sides went", xlabel="change of log-prob, nats per answer")
    ax.legend(loc="lower right", fontsize=8)


def _cost(ax: Axes, results: Results, names: list[str]) -> None:
    there = [name for name in names if "right" in results.methods[name]]
    for name in there:
        point = results.of(name, "kl").mean, results.of(name, "right").mean
        ax.plot(*point, "o", label=name)
    if there:
        ax.legend(loc="lower left", fontsize=8)
    ax.axhline(results.before("right").mean, color=GREY, linestyle="--", linewidth=0.8)
    ax.set(
        title="What it cost",
        xlabel="KL from the start, nats per answer",
        ylabel="probability of a right answer (dashed: start)",
        xscale="log",
    )
    ax.grid(alpha=0.3)
