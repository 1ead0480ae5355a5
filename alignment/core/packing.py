"""Groups of token ids packed behind their shared prefix.

A group is one prefix and K branches. The prefix is the longest common beginning of the contexts of
its responses; a branch holds what is left of a response's own context (a judgment, say) and the
response itself. A branch sees the prefix and itself, and its positions continue where the prefix
ends, so every response has the log-probs it would have alone. The last token of a response predicts
nothing and is not computed.

Three layouts: `ragged` puts all groups into one row without padding, for attention that works
span by span; `shared` fills rows of similar length, for attention that takes a dense mask; `plain`
(one row per response, nothing shared) is for models that cannot share a prefix, and the oracle that
tests hold the others against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["ragged", "shared", "plain"]
PADDING = -1


@dataclass(frozen=True)
class TokenGroup:
    """One group as token ids.

    Attributes:
        prefix: Ids that all K contexts begin with.
        contexts: K lists, the rest of each response's context; mostly empty.
        responses: K lists of response ids, each with at least one.
        role: K values of +1, -1 or 0.
        reward: K labels or None.
        weight: K weights or None.
        aspects: K lists of labels in M dimensions, NaN where nobody judged, or None.
        twin: K indices within the group, -1 where there is none, or None.
        ref_logps: K lists of stored reference log-probs, one per response token, or None.
        mark: K lists of +1, -1 or 0, one per response token, or None.
        score: K lists of scores, one per response token, or None.
        origin: Where the row came from, for messages: `pairs.jsonl:17`.
    """

    prefix: Sequence[int]
    contexts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    role: Sequence[int]
    reward: Sequence[float] | None = None
    weight: Sequence[float] | None = None
    aspects: Sequence[Sequence[float]] | None = None
    twin: Sequence[int] | None = None
    ref_logps: Sequence[Sequence[float]] | None = None
    mark: Sequence[Sequence[int]] | None = None
    score: Sequence[Sequence[float]] | None = None
    origin: str = ""

    @classmethod
    def of(
        cls,
        contexts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        **labels: Any,
    ) -> TokenGroup:
        """Splits K whole contexts into their common prefix and what is left of each.

        Raises:
            ValueError: A context or a response is empty; the first response token needs one to
                predict it.
        """
        if not all(contexts) or not all(responses):
            raise ValueError("every response needs one token and one token of context before it")
        # Whatever the first and the last in lexical order share, all between them share too.
        first, last = min(map(list, contexts)), max(map(list, contexts))
        shared = 0
        for left, right in zip(first, last, strict=False):
            if left != right:
                break
            shared += 1
        return cls(contexts[0][:shared], [c[shared:] for c in contexts], responses, **labels)

    def lengths(self) -> tuple[int, int]:
        """Positions computed in the shared and in the plain layout."""
        branches = [
            len(context) + len(response) - 1
            for context, response in zip(self.contexts, self.responses, strict=True)
        ]
        return len(self.prefix) + sum(branches), len(self.prefix) * len(branches) + sum(branches)


class Span(NamedTuple):
    """Positions of one row that attend to earlier ones among them, and to all of a prefix.

    Attributes:
        prefix: Where the prefix begins and ends; empty where it is part of the span itself.
        own: Where the span begins and ends.
    """

    prefix: tuple[int, int]
    own: tuple[int, int]


@dataclass(frozen=True)
class PackedBatch:
    """Some whole groups, ready for one forward pass. B rows of T positions, N response tokens.

    Attributes:
        input_ids: (B, T) int64.
        position_ids: (B, T) int64; they restart at the prefix length in each branch.
        sequence: (B, T) int64, which sequence of the row a position belongs to, `PADDING` where it
            is none. A sequence is a whole group in the shared layout and one response in the plain
            one.
        branch: (B, T) int64, 0 on the prefix, k > 0 on branch k of its sequence.
        predicts: (N,) int64, the position in B * T whose hidden state predicts the token.
        targets: (N,) int64 response tokens.
        response_of_token: (N,) int64.
        group_of_response: (R,) int64.
        role: (R,) int64.
        reward: (R,) float32 or None.
        weight: (R,) float32 or None.
        aspects: (R, M) float32 or None.
        twin: (R,) int64 or None.
        ref_logps: (N,) float32 stored values or None.
        mark: (N,) int64 or None.
        score: (N,) float32 or None.
        origins: G strings.
        spans: What attends to what in the ragged layout, else empty.
        real: False for a filler that only keeps processes in step; it counts for nothing.
        layout: How it was packed.
    """

    input_ids: Tensor
    position_ids: Tensor
    sequence: Tensor
    branch: Tensor
    predicts: Tensor
    targets: Tensor
    response_of_token: Tensor
    group_of_response: Tensor
    role: Tensor
    reward: Tensor | None
    weight: Tensor | None
    aspects: Tensor | None
    twin: Tensor | None
    ref_logps: Tensor | None
    mark: Tensor | None
    score: Tensor | None
    origins: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    real: bool = True
    layout: Layout = "shared"

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in tensors.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.sequence != PADDING).sum())

    @property
    def one_sequence_per_row(self) -> bool:
        """Whether a causal mask and padding are enough: nothing is shared within a row."""
        return bool((self.branch <= 1).all() and (self.sequence <= 0).all())


@dataclass
class _Sequence:
    """Positions that are laid out together, and the response tokens that they predict."""

    ids: list[int]
    positions: list[int]
    branch: list[int]
    predicts: list[list[int]]  # per response, offsets within the sequence
    responses: list[int]  # indices of the responses in the batch


def pack(
    groups: Sequence[TokenGroup], layout: Layout, pad_token_id: int, *, real: bool = True
) -> PackedBatch:
    """Lays out groups in rows.

    Args:
        groups: At least one.
        layout: How to lay them out.
        pad_token_id: Fills the end of rows.
        real: False for a filler batch.

    Returns:
        The batch. Responses keep the order of `groups` whatever rows they land in.
    """
    sequences: list[_Sequence] = []
    first = 0
    for group in groups:
        sequences += _plain(group, first) if layout == "plain" else [_shared(group, first)]
        first += len(group.responses)
    lengths = [len(sequence.ids) for sequence in sequences]
    if layout == "plain":
        rows = [[index] for index in range(len(sequences))]
    elif layout == "shared":
        rows = fill_rows(lengths, best_row_length(lengths))
    else:
        rows = [list(range(len(sequences)))]
    batch = _assemble(groups, sequences, rows, pad_token_id)
    spans = _spans(groups) if layout == "ragged" else ()
    return replace(batch, spans=spans, layout=layout, real=real)


def _spans(groups: Sequence[TokenGroup]) -> tuple[Span, ...]:
    """A prefix with its first branch, which follows it, is one span; each other branch is one."""
    spans, start = [], 0
    for group in groups:
        prefix = (start, start + len(group.prefix))
        first, *others = (
            len(context) + len(response) - 1
            for context, response in zip(group.contexts, group.responses, strict=True)
        )
        end = prefix[1] + first
        spans.append(Span((start, start), (start, end)))
        for length in others:
            if length:
                spans.append(Span(prefix, (end, end + length)))
            end += length
        start = end
    return tuple(span for span in spans if span.own[0] < span.own[1])


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into as few rows of `capacity` as best-fit decreasing finds.

    Args:
        lengths: Length of each item, none above `capacity`.
        capacity: Positions in a row.

    Returns:
        Rows as lists of item indices.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row, room in enumerate(free) if room >= lengths[item]]
        if fitting:
            row = min(fitting, key=lambda r: free[r])
        else:
            row = len(rows)
            rows.append([])
            free.append(capacity)
        rows[row].append(item)
        free[row] -= lengths[item]
    return rows


def best_row_length(lengths: Sequence[int], attention_cost: float = 1 / 4096) -> int:
    """The row length at which a batch costs least on dense masks.

    Longer rows pad less but their masks grow with the square.

    Args:
        lengths: Length of each sequence.
        attention_cost: Cost of one more key for one position, as a share of that position's other
            work.

    Returns:
        A length of at least the longest sequence.
    """
    longest, total = max(lengths), sum(lengths)
    best, best_cost = longest, float("inf")
    # More rows than this would be no shorter than the longest sequence.
    for count in range(1, -(-total // longest) + 1):
        capacity = max(longest, -(-total // count))
        rows = fill_rows(lengths, capacity)
        length = max(sum(lengths[i] for i in row) for row in rows)
        cost = len(rows) * length * (1 + length * attention_cost)
        if cost < best_cost:
            best, best_cost = length, cost
    return best


def _shared(group: TokenGroup, first_response: int) -> _Sequence:
    shared = len(group.prefix)
    sequence = _Sequence(list(group.prefix), list(range(shared)), [0] * shared, [], [])
    for index, (context, response) in enumerate(
        zip(group.contexts, group.responses, strict=True), start=1
    ):
        ids = [*context, *response[:-1]]
        start = len(sequence.ids)
        sequence.ids.extend(ids)
        sequence.positions.extend(range(shared, shared + len(ids)))
        sequence.branch.extend([index] * len(ids))
        predicts = list(range(start + len(context) - 1, start + len(ids)))
        if not context:
            predicts[0] = shared - 1
        sequence.predicts.append(predicts)
        sequence.responses.append(first_response + index - 1)
    return sequence


def _plain(group: TokenGroup, first_response: int) -> list[_Sequence]:
    sequences = []
    for index, (context, response) in enumerate(zip(group.contexts, group.responses, strict=True)):
        whole = [*group.prefix, *context]
        ids = [*whole, *response[:-1]]
        sequences.append(
            _Sequence(
                ids,
                list(range(len(ids))),
                [0] * len(ids),
                [list(range(len(whole) - 1, len(ids)))],
                [first_response + index],
            )
        )
    return sequences


def _assemble(
    groups: Sequence[TokenGroup],
    sequences: Sequence[_Sequence],
    rows: Sequence[Sequence[int]],
    pad_token_id: int,
) -> PackedBatch:
    length = max(sum(len(sequences[i].ids) for i in row) for row in rows)
    shape = (len(rows), length)
    input_ids = torch.full(shape, pad_token_id)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    sequence_ids = torch.full(shape, PADDING)
    branch = torch.zeros(shape, dtype=torch.int64)
    responses = [response for group in groups for response in group.responses]
    predicts: list[list[int]] = [[] for _ in responses]
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members):
            sequence = sequences[member]
            part = slice(start, start + len(sequence.ids))
            input_ids[row, part] = torch.tensor(sequence.ids)
            position_ids[row, part] = torch.tensor(sequence.positions)
            sequence_ids[row, part] = number
            branch[row, part] = torch.tensor(sequence.branch)
            offset = row * length + start
            for response, offsets in zip(sequence.responses, sequence.predicts, strict=True):
                predicts[response] = [offset + o for o in offsets]
            start = part.stop
    counts = torch.tensor([len(response) for response in responses])
    sizes = torch.tensor([len(group.responses) for group in groups])
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        sequence=sequence_ids,
        branch=branch,
        predicts=torch.tensor([position for part in predicts for position in part]),
        targets=torch.tensor([token for response in responses for token in response]),
        response_of_token=torch.repeat_interleave(counts),
        group_of_response=torch.repeat_interleave(sizes),
        role=torch.tensor([role for group in groups for role in group.role]),
        reward=_labels([group.reward for group in groups]),
        weight=_labels([group.weight for group in groups]),
        aspects=_labels([group.aspects for group in groups]),
        twin=_twins(groups),
        ref_logps=_token_labels([group.ref_logps for group in groups]),
        mark=_token_labels([group.mark for group in groups], torch.int64),
        score=_token_labels([group.score for group in groups]),
        origins=tuple(group.origin for group in groups),
    )


def _token_labels(
    values: Sequence[Sequence[Sequence[float]] | None], dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """(N,) labels of the tokens of all responses, or None where no group has them."""
    flat = [None if value is None else [x for part in value for x in part] for value in values]
    return _labels(flat, dtype)


def _labels(
    values: Sequence[Sequence[float] | Sequence[Sequence[float]] | None],
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """The labels of all groups one after the other, or None where no group has them.

    Raises:
        ValueError: Some groups have the label and some have not.
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    if len(present) < len(values):
        raise ValueError("some groups of one batch carry a label that others lack")
    return torch.tensor([label for value in present for label in value], dtype=dtype)


def _twins(groups: Sequence[TokenGroup]) -> Tensor | None:
    if all(group.twin is None for group in groups):
        return None
    twins, first = [], 0
    for group in groups:
        for twin in group.twin or [-1] * len(group.responses):
            twins.append(twin if twin < 0 else first + twin)
        first += len(group.responses)
    return torch.tensor(twins)


def group_from_record(record: Mapping[str, Any]) -> TokenGroup:
    """The group that a stored row describes; the columns are the fields of `TokenGroup`."""
    return TokenGroup(**{f.name: record[f.name] for f in fields(TokenGroup) if f.name in record})
