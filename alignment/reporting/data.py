"""The data of a run: lengths, contrast, what was lost, and rows side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignment.core.rows import is_local
from alignment.data_tools.inspection import Example, Inspection, Losses, Side, inspect_file
from alignment.data_tools.viewer import marked
from alignment.data_tools.wording import built, contrast
from alignment.pages.blocks import Answer, Block, Exchange, Note, Section, Table
from alignment.reporting.figures import cut, facts, size

_TONES = {"chosen": "chosen", "rejected": "rejected"}


def data_section(name: str, files: list[str], examples: int, seed: int) -> Section:
    """What is in the data of a run.

    Args:
        name: Of the section.
        files: As the recipe names them; paths are meant from this folder, as the run's were.
        examples: How many rows of each file to show.
        seed: Of their draw.
    """
    if not files:
        told = "The run does not say which data it read, so none is shown."
        return Section(name, [Note(told)])
    blocks: list[Block] = []
    for file in files:
        path = Path(file)
        if path.is_file():
            blocks += _of_file(inspect_file(path, examples=examples, seed=seed))
        elif is_local(file):
            blocks.append(Note(f"{file} is not here: call this where the run was started."))
        else:
            blocks.append(Note(f"{file} is a data set of the Hub, and was not fetched anew."))
    return Section(name, blocks)


def _of_file(made: Inspection) -> Iterator[Block]:
    statistics = made.statistics
    yield facts(
        made.file,
        [
            ("rows", statistics.rows + made.unread.count),
            ("size", size(made.bytes)),
            *((f"of these {name}", count) for name, count in statistics.formats.items()),
            *((f"labelled {name}", count) for name, count in statistics.labels.items()),
            *contrast(made),
        ],
    )
    if made.report is not None:
        yield Note(f"The file was {built(made.report)}.")
    else:
        yield Note("No builder's report lies beside the file, so nothing is known of its making.")
    if statistics.lengths:
        names = list(next(iter(statistics.lengths.values())))
        rows = [
            [what, *(f"{of[name]:,.0f}" for name in names)]
            for what, of in statistics.lengths.items()
        ]
        yield Table(f"Lengths in {made.unit}", ["", *names], rows)
    for title, losses in (
        ("Rows that training rejects", made.unread),
        ("Rows that the builder dropped", made.rejects),
    ):
        if losses is not None and losses.count:
            yield _losses(title, losses)
    for example in made.examples:
        yield exchange(example)


def exchange(example: Example) -> Exchange:
    """A row side by side, with the words that differ marked."""
    texts = marked(example)
    remarks = [] if example.judgment is None else [("judgment", cut(example.judgment))]
    prompt = " ".join(example.prompt.split())
    return Exchange(
        title=prompt[:200] or example.source,
        prompt=cut(example.prompt),
        answers=[
            Answer(side.label, _TONES.get(side.label, "plain"), pieces, _note(side))
            for side, pieces in zip(example.sides, texts, strict=True)
        ],
        remarks=remarks,
        outcome=example.source,
    )


def _note(side: Side) -> str:
    reward = [] if side.reward is None else [f"reward {side.reward:g}"]
    model = [] if side.model is None else [side.model]
    return " · ".join([*reward, f"{len(side.text):,} characters", *model])


def _losses(title: str, losses: Losses) -> Table:
    rows = [
        [reason, f"{count:,}", cut(losses.first[reason])]
        for reason, count in losses.reasons.items()
    ]
    return Table(f"{title}: {losses.count:,}", ["reason", "rows", "the first"], rows, is_words=True)
