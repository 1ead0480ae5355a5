"""Labels of characters as labels of tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment.cli import UserError
from alignment.core.groups import RowError, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ranges(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str, ids: Sequence[int]
) -> list[tuple[int, int]]:
    """The characters that each response token stands for.

    Args:
        tokenizer: A fast one, which knows where in the text a token lies.
        before: Text that the response may have been tokenised together with.
        after: The response's text.
        ids: Its tokens, as they are trained on.

    Returns:
        (start, end) in characters of `after` for each of `ids`; a token that was appended to the
        text is empty and stands at its end.

    Raises:
        UserError: The tokenizer is a slow one.
        RowError: `text_not_found`, where the text gives other tokens than `ids`.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer `{tokenizer.name_or_path}` does not tell where its tokens lie in a text, "
            "which spans and segments need: take a fast tokenizer"
        )
    for shift, text in ((len(before), before + after), (0, after)):
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ranges = [(start - shift, end - shift) for start, end in encoded["offset_mapping"]]
        first = next((i for i, (_, end) in enumerate(ranges) if end > 0), len(ranges))
        found = list(encoded["input_ids"])[first:][: len(ids)]
        appended = len(ids) - len(found)
        if appended <= 1 and found == list(ids)[: len(found)]:
            end = (len(after), len(after))
            return [*ranges[first : first + len(found)], *[end] * appended]
    raise RowError(
        "text_not_found", "the response's text alone gives other tokens than it has in the row"
    )


def span_marks(ranges: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """-1 for each token that shares a character with a flagged span, 0 for the others."""
    return [
        -1 if any(start < last and first < end for first, last in spans) else 0
        for start, end in ranges
    ]


def segment_scores(ranges: Sequence[tuple[int, int]], segments: Sequence[Segment]) -> list[float]:
    """The score of the segment in which each token ends.

    What stands before or after the text, such as an end-of-turn token, belongs to the first or the
    last segment.
    """
    ends = [segment.end for segment in segments]
    last = len(segments) - 1
    return [
        segments[min(bisect_right(ends, max(end - 1, start)), last)].score for start, end in ranges
    ]
