"""A report in a real browser: nothing runs, everything can be reached by keys."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from alignment.pages.document import write_page
from alignment.reporting.report import gather
from tests.pages.browser import Opened, started
from tests.pages.hostile import HOSTILE
from tests.reporting import made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a quickstart with foreign text everywhere."""
    folder = tmp_path_factory.mktemp("report")
    write_page(
        folder / "report.html", gather(made.quickstart(folder / "run", HOSTILE), 6, 0).page()
    )
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_report_complains_of_nothing_and_fits(browser: Any, path: Path, width: int, scheme: str):
    opened = Opened(browser, path, width, color_scheme=scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_timeout(100)
    opened.check()
    assert page.locator("script").count() == 0
    assert page.text_content(".exchange .prompt .text").startswith(HOSTILE[:30])
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    opened.close()


def test_sections_and_answers_are_reached_and_opened_by_keys(browser: Any, path: Path):
    opened = Opened(browser, path, 1440)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_role("link", name="Training").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#training"
    summary = page.locator(".exchange summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator(".exchange .prompt").first.is_visible()
    opened.close()


def test_charts_have_names_and_tell_their_values_under_the_pointer(browser: Any, path: Path):
    opened = Opened(browser, path, 1440)
    page = opened.page
    chart = page.get_by_role("img", name="Loss").first
    assert "from 0.99 at step 1 to 0.6 at step 40" in chart.locator("desc").text_content()
    column = chart.locator(".stop").nth(19)
    told = column.locator("text")
    assert told.evaluate("(each) => getComputedStyle(each).opacity") == "0"
    column.locator("rect").hover()
    assert told.evaluate("(each) => getComputedStyle(each).opacity") == "1"
    assert told.text_content() == "step 20: training 0.8, evaluation 0.8333"
    opened.close()


def test_lines_of_a_chart_differ_in_colour_and_dash(browser: Any, path: Path):
    opened = Opened(browser, path, 1440)
    looks = opened.page.evaluate(
        "[...new Set([...document.querySelectorAll('.line')].map((each) => each.classList[1]))]"
        ".map((tone) => getComputedStyle(document.querySelector(`.line.${tone}`)))"
        ".map((style) => [style.stroke, style.strokeDasharray])"
    )
    colours, dashes = zip(*looks, strict=True)
    assert len(looks) == 4
    assert len(set(dashes)) == 3  # training and chosen are solid, and never in one chart
    assert len(set(colours)) == 3  # evaluation and chosen alike
    opened.close()


def test_landmarks_and_headings_are_in_order(browser: Any, path: Path):
    opened = Opened(browser, path, 390)
    page = opened.page
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.locator("section").count() == page.locator("nav a").count()
    opened.close()


@pytest.mark.parametrize(("motion", "behaviour"), [("reduce", "auto"), ("no-preference", "smooth")])
def test_nothing_moves_for_those_who_want_it_still(
    browser: Any, path: Path, motion: str, behaviour: str
):
    opened = Opened(browser, path, 1440, reduced_motion=motion)
    found = opened.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior")
    assert found == behaviour
    opened.close()
