"""How many floating-point operations a step has to do, and how fast a machine does them.

Counted are, for every unique token, 2 operations per weight of the layers forward, 2 backward (the
weights are frozen, so only activations take gradient) and 2 for a reference that is not stored; the
same for the head at the tokens it scores; 6 per weight of the adapter; and 4 per layer, width and
visible pair of positions forward, as much for the reference, twice that backward. Recomputation and
padding are not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from alignment.core.packing import TokenGroup
    from benchmarks._sides import Shape


def operations(shape: Shape, groups: Sequence[TokenGroup], *, stored: bool) -> float:
    """Floating-point operations that a step on some groups has to do."""
    head_dim = shape.hidden // shape.heads
    attended, kept = shape.heads * head_dim, shape.kv_heads * head_dim
    linear = [
        *((shape.hidden, attended), (attended, shape.hidden)),
        *((shape.hidden, kept), (shape.hidden, kept)),
        *((shape.hidden, shape.intermediate),) * 2,
        (shape.intermediate, shape.hidden),
    ]
    layer = sum(rows * columns for rows, columns in linear)
    adapter = shape.rank * sum(rows + columns for rows, columns in linear)
    tokens = sum(group.lengths()[0] for group in groups)
    scored = sum(len(response) for group in groups for response in group.responses)
    passes = 2 if stored else 3  # forward, backward, reference
    weights = tokens * shape.layers * layer + scored * shape.hidden * shape.vocabulary
    seen = sum(map(visible_pairs, groups))
    return (
        2 * passes * weights
        + 6 * tokens * shape.layers * adapter
        + 4 * (passes + 1) * shape.layers * attended * seen
    )


def visible_pairs(group: TokenGroup) -> int:
    """Pairs of a position and one that it sees, itself included, every prompt counted once."""
    prefix = len(group.prefix)
    pairs = prefix * (prefix + 1) // 2
    for context, response in zip(group.contexts, group.responses, strict=True):
        branch = len(context) + len(response) - 1
        pairs += branch * prefix + branch * (branch + 1) // 2
    return pairs


def products_per_second(shape: Shape, tokens: int) -> float:
    """Operations per second of the largest matrix product of a layer, the best of some attempts."""
    left = torch.randn(tokens, shape.hidden)
    right = torch.randn(shape.hidden, shape.intermediate)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * left.numel() * shape.intermediate / min(seconds)
