"""What is true of a seed's data, whatever is trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.cli import UserError
from alignment.core.groups import text_of
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text
from alignment.llm.rows import Row, prompt_of
from alignment.quickstart import world
from alignment.stages import write_whole
from data_builders.statistics import pair_statistics

ADVISED = ("pairs", "worse_pairs")
"""Pairs that are asked about: do they want APO-zero or APO-down?"""
COMPARED = ("pairs", "judged_pairs", "stronger_pairs", "provenance_pairs")


def write_facts(folder: Path) -> None:
    """Measures the data of a seed and writes `facts.json`.

    It holds `advice`: for some pairs the score of the chosen answer against a fresh sample of the
    start, by pair; `overlap`, `edits` and `count` of pairs; and `accuracy`: for the pairs of which
    one side is right, whether that is the chosen one.

    Args:
        folder: Of the seed.

    Raises:
        UserError: Nothing of a kind was made, or nothing of it can be told apart.
    """
    pairs = {name: list(_pairs(folder / f"{name}.jsonl")) for name in COMPARED}
    stats = {
        name: pair_statistics((chosen, rejected) for _, chosen, rejected in several)
        for name, several in pairs.items()
    }
    facts: dict[str, dict[str, Any]] = {
        "advice": {name: _scores(folder / "advice" / name / "verdicts.jsonl") for name in ADVISED},
        "count": {name: stat.pairs for name, stat in stats.items()},
        "overlap": {name: stat.jaccard for name, stat in stats.items()},
        "edits": {name: stat.edit_distance for name, stat in stats.items()},
        "accuracy": {name: list(map(float, _true(several))) for name, several in pairs.items()},
    }
    for kind in ("advice", "accuracy"):
        if empty := next((name for name, values in facts[kind].items() if not values), None):
            raise UserError(
                f"{folder / f'{empty}.jsonl'}: no pair has what its {kind} is measured by; take "
                "more `train_prompts`"
            )
    write_whole(folder / "facts.json", json.dumps(facts) + "\n")


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    for _, row in read_rows(path):
        yield as_text(prompt_of(row)), _text(row, "chosen"), _text(row, "rejected")


def _text(row: Row, side: str) -> str:
    return text_of(row[side])


def _true(pairs: list[tuple[str, str, str]]) -> Iterator[bool]:
    for prompt, chosen, rejected in pairs:
        rights = world.is_right(prompt, chosen), world.is_right(prompt, rejected)
        if rights[0] != rights[1]:
            yield rights[0]


def _scores(path: Path) -> list[float]:
    return [row["score"] for _, row in read_rows(path) if row["score"] is not None]
