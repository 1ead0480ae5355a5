"""A page to read the rows of a file in: filtered, searched, and with the words that differ marked.

It shows what training reads, what training would reject, and what the builder of the file dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alignment.cli import UserError
from alignment.core.groups import RowError, group_from_row
from alignment.core.rows import read_rows
from alignment.data_tools.differences import Piece, differing
from alignment.data_tools.inspection import Draw, Example, Side, example_of, rejects_path
from alignment.llm.rows import Row
from alignment.pages.document import render, write_page
from alignment.pages.printable import printable

Shown = dict[str, Any]
"""A row as the page's script reads it."""


def write_viewer(path: Path, page: Path, *, most: int, seed: int) -> None:
    """Writes the page.

    Args:
        path: Any file that training reads.
        page: The file to write.
        most: Rows it shows at most; of more, so many are drawn.
        seed: Of the draw.

    Raises:
        UserError: The file is missing, damaged or holds no rows, or is the page itself.
    """
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"--html {page}: name a file that ends in .html")
    drawn: Draw[Shown] = Draw(most, seed)
    for make in _rows(path):
        drawn.add(make)
    told = f"{drawn.seen:,} rows"
    if drawn.seen > most:
        told = f"{most:,} of {drawn.seen:,} rows, drawn at random under seed {seed}"
    rows = drawn.items()
    write_page(
        page, render("viewer.html", script="viewer.js", title=path.name, told=told, rows=rows)
    )


def marked(example: Example) -> list[list[Piece]]:
    """The texts of an example's sides, with what differs from the best or the chosen one.

    Of a pair both sides are marked; of more responses all but the best. Spaces between words that
    differ are marked with them.
    """
    best, *others = example.sides
    found = [differing(best.text, other.text) for other in others]
    first = found[0][0] if example.format == "pair" else [Piece(best.text, differs=False)]
    return [*map(_bridged, (first, *(theirs for _, theirs in found)))]


def _bridged(pieces: list[Piece]) -> list[Piece]:
    made: list[Piece] = []
    for index, piece in enumerate(pieces):
        between = 0 < index < len(pieces) - 1 and piece.text == " "
        differs = piece.differs or between
        if made and made[-1].differs and differs:
            made[-1] = Piece(made[-1].text + piece.text, differs=True)
        else:
            made.append(Piece(piece.text, differs))
    return made


def _rows(path: Path) -> Iterator[Callable[[], Shown]]:
    """What makes each row: those of the file in order, then those that its builder dropped."""
    for name, row in read_rows(path):
        try:
            group = group_from_row(row)
        except RowError as error:
            state = f"training rejects: {error.reason}"
            yield partial(_lost, name, state, str(error), row)
        else:
            yield partial(_kept, name, row, group)
    dropped = rejects_path(path)
    if dropped.is_file():
        for _, row in read_rows(dropped):
            kind = "part dropped" if row.get("partial") else "builder dropped"
            state = f"{kind}: {row.get('reason')}"
            name = str(row.get("source"))
            yield partial(_lost, name, state, str(row.get("message")), row.get("row", row))


def _kept(name: str, row: Row, group: Any) -> Shown:
    example = example_of(name, row, group)
    texts = marked(example)
    sides = [_side(side, text) for side, text in zip(example.sides, texts, strict=True)]
    return _shown(name, example.format, example.prompt, sides, judgment=example.judgment)


def _lost(name: str, state: str, message: str, row: Any) -> Shown:
    """A row of which training sees nothing, as it stands in its file."""
    text = json.dumps(row, ensure_ascii=False, indent=1, default=str)
    side = _side(Side("the row", text), [Piece(text, differs=False)])
    return _shown(name, state, "", [side], message=message)


def _shown(name: str, state: str, prompt: str, sides: list[Shown], **said: str | None) -> Shown:
    """A row; what was said of it is its `judgment`, or the `message` why it is lost."""
    texts = {"name": name, "state": state, "prompt": prompt, "judgment": None, "message": None}
    shown = {key: text and printable(text) for key, text in {**texts, **said}.items()}
    return {**shown, "sides": sides, "lost": "message" in said}


def _side(side: Side, pieces: list[Piece]) -> Shown:
    """Parts of a text are in turn what both sides have and what this one alone has."""
    parts = [printable(piece.text) for piece in pieces]
    if pieces and pieces[0].differs:
        parts.insert(0, "")
    return {
        "label": side.label,
        "parts": parts,
        "reward": side.reward,
        "model": None if side.model is None else printable(side.model),
    }
