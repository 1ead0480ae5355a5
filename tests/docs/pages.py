"""The README and the documents as tests read them: pages, and blocks of code with their marks.

A comment before a block says why no test of the page runs it: `<!-- needs: gpu -->` where the
block needs a GPU, `hub` where it needs a hub, a registry or an API; or
`<!-- run by: tests/FILE.py -->`, the test that does run it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))
NEEDS = ("gpu", "hub")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>needs|run by): (?P<mark>[^>]*?) -->\n)?"
    r"^```(?P<head>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its page.
        line: Where it begins.
        language: The first word after the fence.
        text: What it holds.
        needs: What it needs that tests lack.
        run_by: The test that runs it.
    """

    page: str
    line: int
    language: str
    text: str
    needs: tuple[str, ...] = ()
    run_by: str | None = None


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page, all or those of a language."""
    found = list(_blocks(page, read(page)))
    return [block for block in found if language in (None, block.language)]


def _blocks(page: str, text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        marks = tuple(re.split(r",\s*", match["mark"])) if match["mark"] else ()
        yield Block(
            page,
            text.count("\n", 0, match.start("head")) + 1,
            match["head"].split(" ")[0],
            match["text"],
            needs=marks if match["kind"] == "needs" else (),
            run_by=match["mark"] if match["kind"] == "run by" else None,
        )
