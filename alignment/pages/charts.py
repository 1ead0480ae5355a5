"""Charts as SVG: where lines, marks and intervals go; `templates/charts.html` draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
MOST_POINTS = 240
"""Points of a line beyond which neighbours are averaged."""

Tone = Literal["chosen", "rejected", "plain", "evaluation"]


class Point(NamedTuple):
    """A value at a step."""

    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: What it is.
        points: From left to right.
        tone: Its colour and dash.
    """

    name: str
    points: Sequence[Point]
    tone: Tone = "plain"


class Tick(NamedTuple):
    """A mark on an axis: where, and what it says."""

    at: float
    label: str


class Line(NamedTuple):
    """A line as it is drawn."""

    name: str
    tone: Tone
    path: str


class Dot(NamedTuple):
    """A value that the pointer shows."""

    y: float
    tone: Tone


class Stop(NamedTuple):
    """What the pointer shows at a step: a column that it is over, where the values lie, the words.

    Attributes:
        left: Left end of the column.
        width: Of the column.
        x: Where the step lies.
        dots: Where its values lie.
        told: The values in words.
    """

    left: float
    width: float
    x: float
    dots: list[Dot]
    told: str


@dataclass(frozen=True)
class Chart:
    """A chart of lines over steps.

    Attributes:
        title: What is shown.
        description: The same in a sentence with the numbers that matter, for those who cannot see.
        unit: Of the values.
        lines: The lines.
        x_ticks: Marks below.
        y_ticks: Marks at the left.
        stops: What the pointer shows.
        zero: Height of the line of nought, None where it is not shown.
        alarms: Where something was told, with the words.
        averaged: How many logs each point is the mean of.
    """

    title: str
    description: str
    unit: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    stops: list[Stop]
    zero: float | None
    alarms: list[Tick]
    averaged: int

    kind = "chart"
    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM


def chart(
    title: str,
    series: Sequence[Series],
    unit: str = "",
    alarms: Sequence[tuple[float, str]] = (),
) -> Chart | None:
    """Lays out lines over optimiser steps.

    Args:
        title: What is shown.
        series: Lines; values that are no number leave a gap.
        unit: Of the values.
        alarms: Steps at which something was told, and what.

    Returns:
        None where there is no value to show.
    """
    most = max((len(line.points) for line in series), default=0)
    averaged = max(1, math.ceil(most / MOST_POINTS))
    series = [Series(s.name, _thinned(s.points, averaged), s.tone) for s in series if s.points]
    xs = sorted({point.x for line in series for point in line.points})
    ys = [point.y for line in series for point in line.points if math.isfinite(point.y)]
    if not ys:
        return None
    x_axis, y_axis = _axis(xs[0], xs[-1], whole=True), _axis(min(ys), max(ys))
    across = _scale((min(xs[0], x_axis[0]), max(xs[-1], x_axis[-1])), (LEFT, WIDTH - RIGHT))
    up = _scale((y_axis[0], y_axis[-1]), (HEIGHT - BOTTOM, TOP))
    return Chart(
        title=title,
        description=_described(title, series),
        unit=unit,
        lines=[Line(s.name, s.tone, _path(s.points, across, up)) for s in series],
        x_ticks=[Tick(across(x), number(x)) for x in x_axis],
        y_ticks=[Tick(up(y), number(y)) for y in y_axis],
        stops=list(_stops(xs, series, across, up)),
        zero=up(0.0) if y_axis[0] <= 0 <= y_axis[-1] else None,
        alarms=[Tick(across(x), told) for x, told in alarms],
        averaged=averaged,
    )


class Bar(NamedTuple):
    """An interval as it is drawn, in hundredths of the width."""

    low: float
    high: float
    at: float
    reference: float


def bar(value: float, low: float, high: float, ends: tuple[float, float], reference: float) -> Bar:
    """Lays out a value with its interval on a scale that has a value to compare with."""
    place = _scale(ends, (2.0, 98.0))
    return Bar(*(min(100.0, max(0.0, place(each))) for each in (low, high, value, reference)))


def number(value: float) -> str:
    """A number as a reader wants it: four figures, no needless noughts, a true minus."""
    if not math.isfinite(value):
        return "not a number"
    size = abs(value)
    if value == int(value) and size < 1e7:
        text = f"{value:,.0f}"
    elif size >= 1e7 or size < 1e-4:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\N{MINUS SIGN}") if text.startswith("-") else text


def _thinned(points: Sequence[Point], by: int) -> Sequence[Point]:
    """Means of so many neighbours each."""
    if by == 1:
        return points
    parts = [points[i : i + by] for i in range(0, len(points), by)]
    return [Point(part[-1].x, math.fsum(p.y for p in part) / len(part)) for part in parts]


def _scale(domain: tuple[float, float], span: tuple[float, float]) -> _Scale:
    return _Scale(*domain, *span)


class _Scale(NamedTuple):
    """Takes values of a domain to places in a span."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def _axis(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers; those of values enclose them, those of steps lie within."""
    if low == high:
        low, high = (low - 1, high + 1) if not whole else (low, high + 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)] or [low]


def _path(points: Sequence[Point], across: _Scale, up: _Scale) -> str:
    parts, pen = [], "M"
    for point in points:
        if not math.isfinite(point.y):
            pen = "M"
            continue
        parts.append(f"{pen}{across(point.x):g} {up(point.y):g}")
        pen = "L"
    return " ".join(parts)


def _stops(
    xs: Sequence[float], series: Sequence[Series], across: _Scale, up: _Scale
) -> Iterator[Stop]:
    values = [{point.x: point.y for point in line.points} for line in series]
    places = [across(x) for x in xs]
    middles = [(a + b) / 2 for a, b in pairwise(places)]
    edges = [LEFT, *middles, WIDTH - RIGHT]
    for index, x in enumerate(xs):
        there = [(s, known[x]) for s, known in zip(series, values, strict=True) if x in known]
        told = ", ".join(f"{s.name} {number(y)}" for s, y in there)
        yield Stop(
            left=round(edges[index], 2),
            width=round(edges[index + 1] - edges[index], 2),
            x=places[index],
            dots=[Dot(up(y), s.tone) for s, y in there if math.isfinite(y)],
            told=f"step {number(x)}: {told}",
        )


def _described(title: str, series: Sequence[Series]) -> str:
    told = [
        f"{line.name} from {number(line.points[0].y)} at step {number(line.points[0].x)} "
        f"to {number(line.points[-1].y)} at step {number(line.points[-1].x)}"
        for line in series
    ]
    return f"{title}: {'; '.join(told)}."
