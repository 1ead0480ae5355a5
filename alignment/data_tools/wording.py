"""The figures of an inspection in words, for any view of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data_tools.inspection import Inspection

WORST_SHOWN = 5
"""Reasons shown of rows that are lost."""


def built(report: Mapping[str, Any]) -> str:
    """What the builder of a file says of it, in a line."""
    models = ", ".join(f"{role} {of['model']}" for role, of in (report["models"] or {}).items())
    dropped = sum((report["dropped"] or {}).values())
    told = f"built by {report['builder']}, version {report['version']}"
    counted = f"kept {report['kept'] or 0:,} rows, dropped {dropped:,}"
    return f"{told}: {counted}{f'; {models}' if models else ''}"


def contrast(made: Inspection) -> Iterator[tuple[str, str]]:
    """What sets the responses of a file apart: name and value in words."""
    pairs, groups = made.statistics.pairs, made.statistics.groups
    if pairs is not None:
        yield "pairs", f"{pairs.pairs:,}"
        yield "chosen is longer", f"{pairs.length_win_rate:.1%}, as long {pairs.length_ties:.1%}"
        yield "Jaccard of words", f"{pairs.jaccard:.3f}"
        yield (
            "edit distance",
            f"{pairs.edit_distance:.1f} characters, {pairs.normalised_edit_distance:.3f} of the "
            "longer side",
        )
    if groups is not None:
        gap = (
            ""
            if groups.reward_gap is None
            else f"; best minus worst reward {groups.reward_gap:.3f}"
        )
        yield "groups", f"{groups.groups:,} of {groups.smallest} to {groups.largest} responses{gap}"
        yield (
            "ties",
            f"best {groups.tie_best:,}, worst {groups.tie_worst:,}, no gap {groups.no_gap:,}",
        )
        yield "the same text twice", f"{groups.repeated:,} groups"
        if groups.no_reward:
            yield "a reward is missing", f"{groups.no_reward:,} groups"
    near = made.statistics.near_duplicates
    yield "near-duplicates", f"{near['prompts']:,} prompts, {near['responses']:,} responses"
    if made.overlap is not None:
        rows = ", ".join(hit["row"] for hit in made.overlap[:WORST_SHOWN])
        more = ", ..." if len(made.overlap) > WORST_SHOWN else ""
        yield "evaluation prompts", f"{len(made.overlap):,} rows{f': {rows}{more}' if rows else ''}"


def counts(kinds: Mapping[str, int]) -> str:
    """Kinds with how often each occurs, where there are several."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
