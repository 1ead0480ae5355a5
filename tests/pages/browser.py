"""A real browser without a window, and what a page did in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """The browser; in CI its absence is a failure, elsewhere the test is skipped."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is not None:
        return found
    told = "no Chromium: apt-get install chromium"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(told)
    pytest.skip(told)


@contextmanager
def started() -> Iterator[Any]:
    """A running browser."""
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in a window of its own, and all that it complained of or asked for.

    Args:
        browser: As `started` gives it.
        path: The page.
        width: Of the window, pixels.
        **settings: Of the window: `color_scheme`, `reduced_motion`.
    """

    def __init__(self, browser: Any, path: Path, width: int, **settings: str) -> None:
        height = 844 if width < 600 else 900
        window = browser.new_context(viewport={"width": width, "height": height}, **settings)
        self.page = window.new_page()
        self.page.set_default_timeout(60_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.path = path

    def check(self) -> None:
        """Nothing was complained of, asked for, injected or cut off at the side."""
        assert self.complaints == []
        assert self.requests == [self.path.as_uri()]
        assert self.page.evaluate("window.injected") is None
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def close(self) -> None:
        """Closes the window."""
        self.page.context.close()
