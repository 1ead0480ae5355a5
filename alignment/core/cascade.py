"""Attention of a ragged row on a CPU: to the prefix and to one's own span apart, then joined.

Two softmaxes over parts of the keys make the softmax over all of them, once each is weighed by its
normaliser (the logarithm of its sum of exponentials). So the branches of a group attend to their
prefix in one call, without a copy of its keys for each branch and without a mask, and each to
itself in a causal one. The backward pass of a flash kernel is exact for each part when it gets the
joint output and normaliser.

Paper: the joining of partial softmaxes is that of "FlashAttention: Fast and Memory-Efficient Exact
Attention with IO-Awareness", arXiv 2205.14135; that shared prefixes profit, "Hydragen:
High-Throughput LLM Inference with Shared Prefixes", arXiv 2402.05099.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignment.core.packing import Span

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def cascades(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether these states can be attended to in parts: on a CPU, of one type and width."""
    alike = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]
    return alike and query.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def cascade(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float | None
) -> Tensor:
    """Causal attention of every span to its prefix and itself.

    Args:
        query: (1, H, T, D).
        key: (1, H / n, T, D) for n query heads to a key head.
        value: (1, H / n, T, D).
        spans: Which cover all positions in order; those of a prefix stand side by side.
        scaling: Of the products; None for D ** -0.5.

    Returns:
        (1, T, H, D).
    """
    output: Tensor = _Cascade.apply(query, key, value, spans, scaling)
    return output


class _Cascade(torch.autograd.Function):
    """Keeps its inputs, the output and a normaliser for each position and head."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes positional arguments
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: Sequence[Span],
        scaling: float | None,
    ) -> Tensor:
        parts = (_flash(*own, 0.0, True, scale=scaling) for own in _owns(spans, query, key, value))
        result, joint = map(_row, zip(*parts, strict=True))
        output, joint = result.transpose(1, 2), joint.transpose(1, 2)
        for before, own in _branches(spans):
            to_prefix, normaliser = _flash(
                query[:, :, own], key[:, :, before], value[:, :, before], scale=scaling
            )
            own_normaliser = joint[:, :, own]
            share = torch.sigmoid(normaliser - own_normaliser)[..., None].to(output.dtype)
            output[:, :, own].lerp_(to_prefix, share)
            torch.logaddexp(normaliser, own_normaliser, out=own_normaliser)
        ctx.spans, ctx.scaling = spans, scaling
        ctx.save_for_backward(query, key, value, result, joint)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, joint = ctx.saved_tensors
        states = grad.transpose(1, 2), query, key, value, result.transpose(1, 2), joint
        parts = (
            _flash_backward(*own, 0.0, True, scale=ctx.scaling) for own in _owns(ctx.spans, *states)
        )
        rows = map(_row, zip(*parts, strict=True))
        of_query, of_key, of_value = (row.transpose(1, 2) for row in rows)
        for before, own in _branches(ctx.spans):
            seen = own, own, before, before, own, own
            views = (tensor[:, :, where] for tensor, where in zip(states, seen, strict=True))
            more = _flash_backward(*views, 0.0, False, scale=ctx.scaling)
            of_query[:, :, own] += more[0]
            of_key[:, :, before] += more[1]
            of_value[:, :, before] += more[2]
        return of_query, of_key, of_value, None, None


def _owns(spans: Sequence[Span], *states: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The positions of each span in some tensors (1, H, T, ...)."""
    lengths = [end - start for _, (start, end) in spans]
    return zip(*(tensor.split(lengths, 2) for tensor in states), strict=True)


def _row(parts: Sequence[Tensor]) -> Tensor:
    """(1, T, H, ...) of spans (1, H, n, ...), which the kernels leave position by position."""
    return torch.cat([part.transpose(1, 2) for part in parts], 1)


def _branches(spans: Sequence[Span]) -> Iterator[tuple[slice, slice]]:
    """Each prefix with all positions that see it from spans of their own."""
    for (first, last), branches in groupby(spans, lambda span: span.prefix):
        if first < last:
            owns = [span.own for span in branches]
            yield slice(first, last), slice(owns[0][0], owns[-1][1])
