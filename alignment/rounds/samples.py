"""Rows that rounds make of the samples of a model: groups, and pairs mixed with older ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.rows import Named, Output, Reject, Row, column_of, prompt_of, reject_row
from data_builders.pairs import like

VERSION = "1"
"""Of the way in which rows are made."""


def write_groups(output: Output, answers: Path, least: int = 2) -> None:
    """Writes the samples of each prompt as one row with `responses`.

    Repeated samples stand there once. Samples that were cut off or are empty are left out, and
    prompts with fewer than `least` different samples are rejected under the name of their first.

    Args:
        output: Where to.
        answers: Rows with `prompt` and `response`, as `alignment generate` writes them.
        least: Fewest different samples.
    """
    for name, rows in by_prompt(read_rows(answers)):
        first, whole = rows[0], [row for row in rows if row.get("finish_reason") != "length"]
        texts: dict[str, Row] = {}
        for row in whole:
            if row["response"].strip():
                texts.setdefault(row["response"].strip(), row)
        if len(texts) < least:
            told = f"{len(texts)} different whole samples of {len(rows)}; {least} are needed"
            reason = "identical" if texts else "empty" if whole else "truncated"
            output.reject(reject_row(name, first, Reject(reason, told)))
            continue
        kept = list(texts.values())
        output.write(
            {
                "prompt": first["prompt"],
                "responses": [like(first["prompt"], row["response"]) for row in kept],
                "models": [row["model"] for row in kept],
                "meta": {"samples": [row["sample"] for row in kept], "of": len(rows)},
            }
        )


def write_mixture(  # noqa: PLR0913 - all named
    output: Output,
    new: Path,
    old: Sequence[Path],
    *,
    keep_pair: float,
    keep_chosen: float,
    old_share: float,
    seed: int,
) -> None:
    """Writes new pairs mixed with old ones.

    Args:
        output: Where to.
        new: Pairs of this round.
        old: Files of earlier pairs; of several pairs of a prompt the last counts, and rows that are
            no pairs are rejected.
        keep_pair: Probability with which the old pair of a prompt takes the place of its new one.
        keep_chosen: Else, probability with which its chosen side does.
        old_share: Old pairs of other prompts that are added, for each new one.
        seed: Of the draws, which depend on the prompt and not on the order of rows.
    """
    earlier = _pairs(output, old)
    written = 0
    for _, row in read_rows(new):
        text = as_text(prompt_of(row))
        output.write(_mixed(row, earlier.pop(text, None), keep_pair, keep_chosen, f"{seed} {text}"))
        written += 1
    places = {text: random.Random(f"{seed} {text}").random() for text in earlier}
    added = sorted(earlier, key=places.__getitem__)[: round(old_share * written)]
    for text in added:
        output.write(earlier[text])


def _pairs(output: Output, files: Iterable[Path]) -> dict[str, Row]:
    """The text of a prompt -> its last pair; rows that are no pairs are rejected."""
    found: dict[str, Row] = {}
    for name, row in chain.from_iterable(map(read_rows, files)):
        try:
            text = as_text(prompt_of(row))
            for side in ("chosen", "rejected"):
                column_of(row, side)
        except Reject as error:
            output.reject(reject_row(name, row, error))
        else:
            found[text] = row
    return found


def _mixed(new: Row, old: Row | None, keep_pair: float, keep_chosen: float, seed: str) -> Row:
    rng = random.Random(seed)
    takes_pair, takes_chosen = rng.random() < keep_pair, rng.random() < keep_chosen
    if old is None or not (takes_pair or takes_chosen):
        return new
    if takes_pair:
        return old
    if old["chosen"] == new["rejected"]:  # no pair would be left
        return new
    return {**new, "chosen": old["chosen"], "meta": {**new.get("meta", {}), "chosen_is_old": True}}


def by_prompt(rows: Iterable[Named]) -> list[tuple[str, list[Row]]]:
    """The rows of each prompt, in their order, with the name of the first."""
    found: dict[str, tuple[str, list[Row]]] = {}
    for name, row in rows:
        found.setdefault(as_text(prompt_of(row)), (name, []))[1].append(row)
    return list(found.values())


def texts_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """The answers in rows of `alignment generate`."""
    return (str(row["response"]) for _, row in rows)
