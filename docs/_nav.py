"""Puts pages that the navigation of mkdocs.yml does not name at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs when it has found all files."""
    named = set(_pages(config["nav"]))
    others = sorted({file.src_uri for file in files.documentation_pages()} - named)
    if others:
        config["nav"] = [*config["nav"], {"More": others}]
    return files


def _pages(nav: Any) -> Iterator[str]:
    """The pages that a navigation names, at any depth."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(part)
