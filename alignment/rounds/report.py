"""What a loop says at its end: a table by round, and a plot."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger("alignment")

COLUMNS = (
    *("round", "score", "95% interval", "gain", "95% interval", "examples", "dropped"),
    *("calls", "tokens", "dollars", "seconds"),
)
PLOT = "scores.png"


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The table of a run, then what is to be known beside it."""
    rows = [COLUMNS, *map(_cells, results["rounds"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    yield "score: win rate over the start; gain: over the best round before, on the same prompts"
    for row in results["rounds"]:
        yield from (f"round {row['round']}: {warning}" for warning in row["warnings"])
    if results["stopped"]:
        yield f"stopped early: {results['stopped']}"
    best = results["best_round"]
    yield f"best: round {best}" if best else "best: the start; no round helped, so none is kept"


def draw(folder: Path, results: Mapping[str, Any]) -> None:
    """Draws the score by round with its intervals; without matplotlib it says what is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: install matplotlib, which comes with the extra `report`")
        return
    rows = results["rounds"]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers, scores = [row["round"] for row in rows], [row["score"] for row in rows]
    ends = list(zip(*(row["score_ci"] for row in rows), strict=True))
    bars = [[abs(score - end) for score, end in zip(scores, side, strict=True)] for side in ends]
    axes.errorbar(numbers, scores, yerr=bars, fmt="o-", capsize=5, color="#1f77b4")
    axes.axhline(0.5, color="#444444", linestyle="--", linewidth=0.8, label="the start")
    axes.set(
        title=f"{results['method']}, seed {results['seed']}",
        xlabel="round",
        ylabel="win rate over the start",
        xticks=numbers,
        ylim=(0.0, 1.0),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(folder / PLOT, dpi=150)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    cost = row["cost"]
    return (
        str(row["round"]),
        f"{row['score']:.3f}",
        _interval(row["score_ci"]),
        f"{row['gain']:+.3f}",
        _interval(row["gain_ci"]),
        str(row["examples"]),
        str(sum(row["dropped"].values())),
        str(cost["calls"]),
        str(cost["prompt_tokens"] + cost["completion_tokens"]),
        f"{cost['dollars']:.2f}",
        f"{cost['seconds']:.0f}",
    )


def _interval(ends: Sequence[float]) -> str:
    low, high = ends
    return f"[{low:.3f}, {high:.3f}]"
