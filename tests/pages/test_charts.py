"""Where lines and intervals go, and what is said to those who cannot see them."""

import math

import pytest

from alignment.pages.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Point,
    Series,
    bar,
    chart,
    number,
)


def drawn(*points: tuple[float, float], **others: list[tuple[float, float]]) -> Chart:
    series = [Series("training", [Point(*point) for point in points])]
    series += [Series(name, [Point(*point) for point in line]) for name, line in others.items()]
    made = chart("Loss", series)
    assert made is not None
    return made


def test_a_line_runs_from_corner_to_corner_of_its_axes():
    """Values 0 and 2 are round, so they are the ends of the axis; steps 0 and 10 likewise."""
    (line,) = drawn((0, 2), (10, 0)).lines
    assert line.path == f"M{LEFT} {TOP} L{WIDTH - RIGHT} {HEIGHT - BOTTOM}".replace("  ", " ")


def test_round_numbers_enclose_the_values_and_steps_are_whole():
    made = drawn((1, 0.93), (7, 0.41))
    assert [tick.label for tick in made.y_ticks] == ["0.4", "0.6", "0.8", "1"]
    assert [tick.label for tick in made.x_ticks] == ["2", "4", "6"]
    assert made.zero is None
    assert drawn((0, -1), (1, 1)).zero == pytest.approx((TOP + HEIGHT - BOTTOM) / 2)


def test_one_log_and_equal_values_are_drawn():
    for made in (drawn((5, 0.25)), drawn((1, 3.0), (2, 3.0)), drawn((1, 0.0))):
        assert made.lines[0].path.startswith("M")
        assert all(math.isfinite(tick.at) for tick in (*made.x_ticks, *made.y_ticks))


def test_a_value_that_is_no_number_leaves_a_gap():
    made = drawn((0, 1), (1, math.nan), (2, math.inf), (3, 2))
    assert made.lines[0].path.count("M") == 2
    assert "not a number" in made.stops[1].told
    assert len(made.stops[1].dots) == 0


def test_nothing_to_show_is_no_chart():
    assert chart("Loss", []) is None
    assert chart("Loss", [Series("training", [])]) is None
    assert chart("Loss", [Series("training", [Point(1, math.nan)])]) is None


def test_long_runs_are_averaged_over_neighbours_which_is_said():
    made = drawn(*((step, step % 2) for step in range(1, 4 * MOST_POINTS + 1)))
    assert made.averaged == 4
    assert len(made.stops) == MOST_POINTS
    assert made.stops[0].told == "step 4: training 0.5"


def test_columns_of_the_pointer_cover_the_chart_without_overlap():
    stops = drawn((0, 1), (1, 2), (10, 3)).stops
    ends = [stop.left for stop in stops] + [stops[-1].left + stops[-1].width]
    assert ends[0] == LEFT
    assert ends[-1] == pytest.approx(WIDTH - RIGHT)
    for stop, end in zip(stops, ends[1:], strict=True):
        assert stop.left <= stop.x <= end
        assert stop.left + stop.width == pytest.approx(end, abs=0.02)


def test_the_description_holds_the_ends_of_every_line():
    made = drawn((1, 0.9), (20, 0.5), evaluation=[(10, 0.8), (20, 0.7)])
    assert made.description == (
        "Loss: training from 0.9 at step 1 to 0.5 at step 20; "
        "evaluation from 0.8 at step 10 to 0.7 at step 20."
    )
    assert made.stops[-1].told == "step 20: training 0.5, evaluation 0.7"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        *((0, "0"), (1234, "1,234"), (1.0, "1"), (0.123456, "0.1235"), (-0.5, "\u22120.5")),
        *((12.3456, "12.35"), (1e-6, "1.00e-06"), (3.2e9, "3.20e+09"), (0.1 + 0.2, "0.3")),
        (math.nan, "not a number"),
    ],
)
def test_numbers_are_told_in_four_figures(value: float, told: str):
    assert number(value) == told


def test_an_interval_lies_on_its_scale_and_never_beyond():
    """0 to 1 takes 2 to 98 hundredths: 0.25 is at 26, 0.5 at 50, 0.75 at 74."""
    assert bar(0.5, 0.25, 0.75, (0.0, 1.0), 0.5) == (26.0, 74.0, 50.0, 50.0)
    assert bar(5.0, -9.0, 9.0, (0.0, 1.0), 0.5)[:2] == (0.0, 100.0)
