"""A page is one file: a template filled with escaped text, its style and its script inside.

Nothing is fetched and nothing that was not written here runs: a content security policy in the page
allows the one style and the one script by their checksums, and no address at all.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignment import __version__
from alignment.pages.printable import printable


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """Fills a template.

    Args:
        template: A file of `templates`, which extends `page.html`.
        script: The file there that the page runs.
        **values: What the template shows; text in it is escaped, and `tojson` makes JSON of a value
            that is safe in a script element.
    """
    environment = _environment()
    style, code = _source("style.css"), _source(script) if script is not None else ""
    policy = [
        "default-src 'none'",
        "img-src data:",
        f"style-src {_checksum(style)}",
        f"script-src {_checksum(code)}" if code else "script-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return environment.get_template(template).render(
        policy="; ".join(policy),
        style=Markup(style),
        script=Markup(code),
        release=__version__,
        **values,
    )


def write_page(path: Path, page: str) -> None:
    """Writes a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("alignment.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    """What is put into a page: words without control characters, markup as it is."""
    return printable(value) if type(value) is str else value


def _source(name: str) -> str:
    environment = _environment()
    return cast(PackageLoader, environment.loader).get_source(environment, name)[0]


def _checksum(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
