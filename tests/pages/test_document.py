"""A page is one file that fetches nothing and in which foreign text stays text."""

import html
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from alignment.pages.blocks import (
    Answer,
    Charts,
    Code,
    Exchange,
    Facts,
    Interval,
    Intervals,
    Note,
    Section,
    Table,
)
from alignment.pages.charts import Point, Series, bar, chart
from alignment.pages.document import render, write_page
from tests.pages.hostile import HOSTILE

ROOT = Path(__file__).parents[2]
STYLE = ROOT / "alignment/pages/templates/style.css"


def every_block(text: str) -> list[Any]:
    """One block of each kind, with a text wherever one can stand."""
    made = chart(text, [Series(text, [Point(1, 1.0), Point(2, 2.0)])], text, [(1.0, text)])
    assert made is not None
    answers = [Answer(text, "chosen", [(text, True)], text), Answer(text, "x", [(text, False)])]
    return [
        Facts([(text, text)], text),
        Table(text, [text], [[text, text]]),
        Charts([made]),
        Intervals(text, [Interval(text, text, text, bar(0, 0, 1, (0, 1), 0), text)], text),
        Note(text, is_warning=True),
        Code(text, text),
        Exchange(text, text, answers, [(text, text)], text),
    ]


def page_of(text: str) -> str:
    sections = [Section(text, every_block(text), [(text, text)])]
    return render("report.html", title=text, told=text, subtitle=text, sections=sections)


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name == "href"]


def test_no_text_in_any_place_becomes_markup():
    """A page with foreign text has the very elements and attributes of one with plain text."""
    plain, hostile = Elements(page_of("x" * len(HOSTILE))).found, Elements(page_of(HOSTILE)).found
    assert hostile == plain
    assert {"figure", "svg", "table", "details", "dl"} <= {tag for tag, _ in plain}


def test_texts_in_the_json_of_a_page_end_no_script_and_come_back_whole():
    page = render("viewer.html", title="t", told="t", script="viewer.js", rows=[HOSTILE, "\ud800"])
    assert page.count("</script>") == 2
    assert "<!--" not in page


def test_marks_that_hide_or_turn_the_line_are_shown_by_their_codes():
    page = page_of("a\u202eb\u200bc\x1b[0m")
    assert "a\\u202eb\\u200bc\\x1b[0m" in page
    assert "\u202e" not in page


@pytest.mark.parametrize("text", ["plain", HOSTILE], ids=["plain", "hostile"])
def test_a_page_names_nothing_that_would_be_fetched(text: str):
    page = page_of(text)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert html.unescape(policy[1]).startswith("default-src 'none'; img-src data:; style-src 'sha")
    found = Elements(page)
    assert not {"src", "srcset", "data", "action", "style"} & {
        n for _, ns in found.found for n in ns
    }
    assert all(address.startswith(("#", "data:,")) for address in found.addresses)
    assert re.findall(r"url\(|@import", STYLE.read_text()) == []


def test_a_template_that_lacks_a_value_is_an_error():
    with pytest.raises(UndefinedError):
        render("report.html", title="t")


def test_a_page_is_written_whole_and_its_folder_is_made(tmp_path: Path):
    path = tmp_path / "new" / "page.html"
    write_page(path, "é")
    assert path.read_bytes() == "é".encode()
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


def test_an_installed_copy_has_every_file_that_is_no_module():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    files = [
        path
        for package in ("alignment", "data_builders", "eval")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert STYLE in files
    assert [path for path in files if not any(map(path.match, patterns))] == []


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it: (lighter + 0.05) / (darker + 0.05)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_have_the_contrast_that_accessibility_asks_for(theme: int):
    """WCAG AA: 4.5 for text, 3 for the edge of a control."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[theme]))
    for background in ("paper", "sheet"):
        for name in ("ink", "faint", "accent", "chosen", "rejected", "remark"):
            assert contrast(colours[name], colours[background]) >= 4.5, (name, background)
    for tint in ("chosen-tint", "rejected-tint"):
        assert contrast(colours["ink"], colours[tint]) >= 4.5, tint
    assert contrast(colours["warn"], colours["warn-tint"]) >= 4.5
    assert contrast(colours["edge"], colours["paper"]) >= 3
