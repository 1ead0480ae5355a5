"""Rows that rounds make of the samples of a model: groups, and pairs mixed with older ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.rows import Output, Reject, Row, prompt_of, reject_row
from data_builders.pairs import like

VERSION = "1"
"""Of the way in which rows are made."""


def write_groups(output: Output, answers: Path, least: int = 2) -> None:
    """Writes the samples of each prompt as one row with `responses`.

    Repeated samples stand there once. Samples that were cut off or are empty are left out, and
    prompts with fewer than `least` different samples are rejected.

    Args:
        output: Where to.
        answers: Rows with `prompt` and `response`, as `alignment generate` writes them.
        least: Fewest different samples.
    """
    for prompt, rows in by_prompt(read_rows(answers)).items():
        texts: dict[str, Row] = {}
        for row in rows:
            if row["response"].strip() and row.get("finish_reason") != "length":
                texts.setdefault(row["response"].strip(), row)
        first = rows[0]
        if len(texts) < least:
            told = f"{len(texts)} different whole samples of {len(rows)}; {least} are needed"
            reason = "identical" if texts else "truncated"
            output.reject(reject_row(prompt, first, Reject(reason, told)))
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
        old: Files of earlier pairs.
        keep_pair: Probability with which the old pair of a prompt takes the place of its new one.
        keep_chosen: Else, probability with which its chosen side does.
        old_share: Old pairs of other prompts that are added, for each new one.
        seed: Of the draws, which depend on the prompt and not on the order of rows.
    """
    earlier = {as_text(prompt_of(row)): row for path in old for _, row in read_rows(path)}
    written = 0
    for _, row in read_rows(new):
        text = as_text(prompt_of(row))
        output.write(_mixed(row, earlier.pop(text, None), keep_pair, keep_chosen, f"{seed} {text}"))
        written += 1
    places = {text: random.Random(f"{seed} {text}").random() for text in earlier}
    added = sorted(earlier, key=places.__getitem__)[: round(old_share * written)]
    for text in added:
        output.write(earlier[text])


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


def by_prompt(rows: Iterable[tuple[str, Row]]) -> dict[str, list[Row]]:
    """Rows by the text of their prompt, in their order."""
    found: dict[str, list[Row]] = {}
    for _, row in rows:
        found.setdefault(as_text(prompt_of(row)), []).append(row)
    return found


def texts_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """The answers in rows of `alignment generate`."""
    return (str(row["response"]) for _, row in rows)
