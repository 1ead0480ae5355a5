"""An inspection in a terminal: tables, and pairs side by side with the differing words coloured.

Texts of data are shown as they are written and never obeyed: markup is text, and what would move
the cursor, ring or change the order of the letters is shown by its code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignment.data_tools.differences import Piece, differing
from alignment.data_tools.inspection import Example, Inspection, Losses, Side
from alignment.data_tools.wording import WORST_SHOWN, built, contrast, counts
from alignment.pages.printable import printable

_STYLES = {"chosen": "bold green", "rejected": "bold red", "response": "bold cyan"}
"""Of the words in which a response differs from the best or the chosen one."""
_NARROW = 60
"""Columns below which two texts stand one under the other."""


def show(inspection: Inspection, console: Console, longest: int) -> None:
    """Prints an inspection.

    Args:
        inspection: What to show.
        console: Where to; its width and colours are used.
        longest: Characters shown of a text of an example; 0 for all.
    """
    for part in _figures(inspection):
        console.print(part)
    for example in inspection.examples:
        console.print(_example(example, console.width, longest))


def _figures(made: Inspection) -> Iterable[RenderableType]:
    statistics = made.statistics
    read = statistics.rows + made.unread.count
    yield _text(f"{made.file}: {read:,} rows, {made.bytes:,} bytes", "bold")
    if made.report is not None:
        yield _text(built(made.report))
    yield _table("columns", [(name, counts(kinds)) for name, kinds in made.columns.items()])
    labels = {f"of these {name}": count for name, count in statistics.labels.items()}
    formats = {**statistics.formats, **labels}
    yield _table("rows", [(name, f"{count:,}") for name, count in formats.items()])
    if made.unread.count:
        yield _losses("rows that training would reject", made.unread)
    if statistics.lengths:
        yield _lengths(f"lengths in {made.unit}", statistics.lengths)
    yield _table("contrast", list(contrast(made)))
    if made.rejects is not None:
        yield _losses("rows that the builder dropped", made.rejects)


def _losses(title: str, losses: Losses) -> Table:
    shown = [*losses.reasons.items()][:WORST_SHOWN]
    rows = [(reason, f"{count:,}", losses.first[reason]) for reason, count in shown]
    if len(losses.reasons) > WORST_SHOWN:
        rows.append(("...", f"{len(losses.reasons) - WORST_SHOWN} more reasons", ""))
    return _table(f"{title}: {losses.count:,}", rows)


def _lengths(title: str, lengths: Mapping[str, Mapping[str, float]]) -> Table:
    names = list(next(iter(lengths.values())))
    rows = [(what, *(f"{of[name]:,.0f}" for name in names)) for what, of in lengths.items()]
    return _table(title, rows, head=("", *names))


def _table(title: str, rows: Sequence[Sequence[str]], head: Sequence[str] | None = None) -> Table:
    table = Table(
        title=_text(title, "bold"), title_justify="left", box=None, show_header=head is not None
    )
    for index, name in enumerate(head or rows[0] if rows else ()):
        table.add_column(_text(name), justify="right" if head and index else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _example(example: Example, width: int, longest: int) -> RenderableType:
    parts: list[RenderableType] = [_text(_cut(example.prompt, longest), "dim"), Text()]
    best, *others = example.sides
    if example.format == "pair":
        left, right = _compared(best, others[0], longest)
        sides = _heading(best), _heading(others[0])
        if width < _NARROW:
            parts += [sides[0], left, sides[1], right]
        else:
            parts.append(_side_by_side(sides, (left, right)))
    else:
        parts += [_heading(best), _text(_cut(best.text, longest))]
        for other in others:
            parts += [_heading(other), _compared(best, other, longest)[1]]
    if example.judgment is not None:
        parts += [_text("judgment", "bold yellow"), _text(_cut(example.judgment, longest))]
    return Panel(Group(*parts), title=_text(example.source), title_align="left")


def _side_by_side(heads: Sequence[Text], bodies: Sequence[Text]) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1))
    for head in heads:
        table.add_column(head, ratio=1, overflow="fold")
    table.add_row(*bodies)
    return table


def _heading(side: Side) -> Text:
    reward = "" if side.reward is None else f"  reward {side.reward:g}"
    return _text(f"{side.label}{reward}{f'  {side.model}' if side.model else ''}", "underline")


def _compared(one: Side, other: Side, longest: int) -> tuple[Text, Text]:
    """Two texts in which the words that differ are coloured by side.

    What lies far beyond the part that is shown is not compared: time grows with the square of the
    length.
    """
    compared = slice(None, 2 * longest if longest else None)
    pieces = differing(one.text[compared], other.text[compared])
    left, right = (
        _coloured(part, side, longest) for part, side in zip(pieces, (one, other), strict=True)
    )
    return left, right


def _coloured(pieces: Iterable[Piece], side: Side, longest: int) -> Text:
    made = Text()
    left = longest or len(side.text)
    for text, differs in pieces:
        made.append(printable(text[:left]), _STYLES[side.label] if differs else "")
        left -= len(text[:left])
    if 0 < longest < len(side.text):
        made.append(_more(len(side.text) - longest), "dim")
    return made


def _cut(text: str, longest: int) -> str:
    if not longest or len(text) <= longest:
        return text
    return text[:longest] + _more(len(text) - longest)


def _more(hidden: int) -> str:
    return f" ... {hidden:,} more characters"


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style)
