"""Which tokens an edit of a response inserts, replaces or deletes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from rapidfuzz.distance import Levenshtein

from alignment.core.packing import TokenGroup


def edit_marks(
    original: Sequence[int], revised: Sequence[int], end_tokens: Collection[int]
) -> tuple[list[int], list[int]]:
    """Marks of the tokens that a shortest edit script touches, as FIGA's release sets them.

    Where several scripts are equally short, the library's choice counts.

    Args:
        original: Ids of the answer before the edit.
        revised: Ids of the answer after it.
        end_tokens: Ids that end a response; the first of each side is marked +1.

    Returns:
        The original's marks, -1 where a token is deleted or replaced, and the revision's, +1 where
        one is inserted or replaces another; 0 elsewhere.
    """
    marks = [0] * len(original), [0] * len(revised)
    for edit in Levenshtein.editops(original, revised):
        if edit.tag != "insert":
            marks[0][edit.src_pos] = -1
        if edit.tag != "delete":
            marks[1][edit.dest_pos] = 1
    for ids, side in zip((original, revised), marks, strict=True):
        end = next((index for index, token in enumerate(ids) if token in end_tokens), None)
        if end is not None:
            side[end] = 1
    return marks


def mark_edits(group: TokenGroup, end_tokens: Collection[int]) -> TokenGroup:
    """A pair with the marks of what leads from its rejected to its chosen response."""
    sides = list(group.role)
    original, revised = sides.index(-1), sides.index(1)
    marks: list[list[int]] = [[], []]
    marks[original], marks[revised] = edit_marks(
        group.responses[original], group.responses[revised], end_tokens
    )
    return replace(group, mark=marks)
