"""The documents build into a site without a warning, and the site loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=\"?((?:https?:)?//[^\s\">]+)"
    r"|<link\b(?=[^>]*rel=\"?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*"
    r"\bhref=\"?((?:https?:)?//[^\s\">]+)"
    r"|(?:@import|url\()\s*[\"']?((?:https?:)?//[^\s\"')]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_every_page_is_in_the_site_and_its_navigation(site: Path):
    start = (site / "index.html").read_text(encoding="utf-8")
    pages = [Path(page).stem for page in PAGES if page.startswith("docs/")]
    assert [name for name in pages if not (site / f"{name}.html").is_file()] == []
    others = [name for name in pages if name != "index"]
    assert [name for name in others if f'href="{name}.html"' not in start] == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path):
    """Links lead out; scripts, styles, fonts and pictures do not."""
    found = [
        (path.name, next(filter(None, match)))
        for path in [*site.rglob("*.html"), *site.rglob("*.css")]
        for match in _LOADED.findall(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_what_is_loaded_from_elsewhere_would_be_found():
    for text in (
        '<script src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//fonts.example/css">',
        "@font-face{src:url(https://fonts.example/a.woff)}",
        '<link href="https://fonts.example" rel="preconnect">',
    ):
        assert _LOADED.search(text), text
    assert not _LOADED.search('<a href="https://arxiv.org/abs/2402.05369">')
