"""The page of rows in a real browser: keys, filters, foreign text, ten thousand rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.data_tools.viewer import write_viewer
from tests.pages.browser import Opened, started
from tests.pages.hostile import HOSTILE

pytestmark = pytest.mark.slow

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a cat.", "chosen": "A black cat.", "rejected": "A black dog."},
    {"prompt": "Jump?", "chosen": "Yes, jump. " * 20, "rejected": "No."},
    {"prompt": "Sort", "responses": ["a b", "b a", "c"], "rewards": [1.0, 0.1 + 0.2, 0.0]},
    {"instruction": "Poem", "output": "An old pond", "judgment": "Not your own."},
    {"prompt": HOSTILE, "chosen": HOSTILE + " more", "rejected": HOSTILE},
    {"prompt": "p", "responses": [HOSTILE, "b"], "rewards": [1, 0], "models": [HOSTILE, "m"]},
    {"instruction": "p", "output": "o", "judgment": HOSTILE},
    {"prompt": "p", "chosen": "", "rejected": HOSTILE},
    {HOSTILE: HOSTILE},
]
REJECTS = [{"source": "in:3", "reason": HOSTILE, "message": HOSTILE, "row": {"prompt": HOSTILE}}]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of rows of every format, of rows that are lost, and of foreign text everywhere."""
    folder = tmp_path_factory.mktemp("rows")
    for name, rows in (("rows.jsonl", ROWS), ("rows.jsonl.rejects.jsonl", REJECTS)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_viewer(folder / "rows.jsonl", folder / "rows.html", most=100, seed=0)
    return folder / "rows.html"


@pytest.fixture(params=[390, 1440])
def opened(request: pytest.FixtureRequest, browser: Any, path: Path) -> Iterator[Opened]:
    made = Opened(browser, path, request.param)
    yield made
    made.check()
    made.close()


def count(page: Any) -> str:
    return page.inner_text("#count")


def heading(page: Any) -> str:
    return page.inner_text("main h2")


def test_every_row_is_shown_as_text_and_nothing_in_it_runs(opened: Opened):
    page = opened.page
    shown = "\\u202e".join(HOSTILE.split("\u202e"))
    for index in range(len(ROWS) + len(REJECTS)):
        assert page.get_attribute("#list", "aria-activedescendant") == f"option-{index}"
        page.keyboard.press("j")
    page.fill("#words", HOSTILE[:30])
    assert count(page) == "6 of 10 rows"
    page.click("#option-0")
    assert page.text_content(".said.prompt .text") == shown
    assert page.text_content(".said.rejected .text") == shown
    assert page.text_content(".said.chosen mark") == " more"
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0


def test_keys_move_search_and_explain_themselves(opened: Opened):
    page = opened.page
    assert heading(page) == "rows.jsonl:1 · pair"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert heading(page) == "rows.jsonl:3 · group"
    page.keyboard.press("k")
    assert heading(page) == "rows.jsonl:2 · pair"
    page.keyboard.press("/")
    page.keyboard.type("jj ?/")  # while typing, keys are letters
    assert page.input_value("#words") == "jj ?/"
    page.fill("#words", "")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("End")
    assert heading(page).startswith("in:3 · builder dropped: ")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    assert heading(page) == "rows.jsonl:1 · pair"
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    assert heading(page) == "rows.jsonl:1 · pair"


def test_filters_by_reason_length_and_words_filter_together(opened: Opened):
    page = opened.page
    assert count(page) == "10 of 10 rows"
    page.select_option("#reason", "pair")
    assert count(page) == "3 of 10 rows"
    page.fill("#least", "100")
    assert count(page) == "2 of 10 rows"
    page.fill("#most", "230")
    page.fill("#words", "JUMP")
    assert count(page) == "1 of 10 rows"
    assert heading(page) == "rows.jsonl:2 · pair"
    page.fill("#words", "nowhere")
    assert count(page) == "0 of 10 rows"
    assert page.inner_text("main") == "No row fits the filters."
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    for name in ("#words", "#least", "#most"):
        page.fill(name, "")
    page.select_option("#reason", "training rejects: empty_response")
    assert count(page) == "1 of 10 rows"
    assert "rejected" in page.inner_text("main")


def test_a_group_shows_its_rewards_and_a_judged_row_what_was_said(opened: Opened):
    page = opened.page
    page.fill("#words", "sort")
    notes = page.locator("main .sides h3").all_inner_texts()
    assert notes == [f"response reward {r} · {n} characters" for r, n in ((1, 3), (0.3, 3), (0, 1))]
    page.fill("#words", "old pond")
    assert page.inner_text(".remark h3") == "judgment"
    assert page.inner_text(".remark .text") == "Not your own."


def test_a_row_is_chosen_by_a_click(opened: Opened):
    opened.page.click("#option-2")
    assert heading(opened.page) == "rows.jsonl:3 · group"
    assert opened.page.get_attribute("#option-2", "aria-selected") == "true"


def test_controls_have_names_and_the_page_its_landmarks(opened: Opened):
    page = opened.page
    unnamed = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0
    for role, name in (("search", "Rows"), ("listbox", "Rows"), ("main", "The row")):
        assert page.get_by_role(role, name=name).count() == 1
    assert page.get_attribute("#list [role=option]", "aria-setsize") == "10"


def test_what_might_be_injected_all_the_same_may_not_run(browser: Any, path: Path):
    """The policy of the page, against a fault that nobody knows of yet."""
    opened = Opened(browser, path, 1440)
    opened.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        "{textContent: 'window.injected = 1'}));"
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://x.invalid/>')"
    )
    assert opened.page.evaluate("window.injected") is None
    assert len([told for told in opened.complaints if "Content Security Policy" in told]) == 2
    opened.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_ten_thousand_rows_open_scroll_and_filter(browser: Any, tmp_path: Path, width: int):
    """Bounds are generous: a page that drew all rows at once would take minutes and gigabytes."""
    words = "some words that answer the question in a line or two " * 8
    rows = [
        {"prompt": f"Question {n}", "chosen": f"{words}{n}", "rejected": f"{words}{n + 1}"}
        for n in range(10_000)
    ]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_viewer(tmp_path / "many.jsonl", tmp_path / "many.html", most=10_000, seed=0)
    opened = Opened(browser, tmp_path / "many.html", width)
    page = opened.page
    assert count(page) == "10000 of 10000 rows"
    assert page.evaluate("performance.getEntriesByType('navigation')[0].duration") < 20_000
    assert page.locator("[role=option]").count() < 60
    page.evaluate("document.querySelector('#list').scrollTop = 1e9")
    page.get_by_text("Question 9999").wait_for()
    assert page.locator("[role=option]").count() < 60
    page.keyboard.press("j")
    assert heading(page) == "many.jsonl:2 · pair"
    assert page.get_by_text("Question 1", exact=True).first.is_visible()
    page.fill("#words", "question 123")
    assert count(page) == "11 of 10000 rows"
    opened.check()
    opened.close()
