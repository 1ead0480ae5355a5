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
        spans: Which cover all positions; those of a prefix stand side by side.
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
        result = query.new_empty(query.transpose(1, 2).shape)
        output, normalisers = result.transpose(1, 2), []
        keys, values = (_for_each_query(states, query) for states in (key, value))
        for span in spans:
            parts = (states[:, :, slice(*span.own)] for states in (query, keys, values))
            output[:, :, slice(*span.own)], normaliser = _flash(*parts, 0.0, True, scale=scaling)
            normalisers.append(normaliser)
        joint = torch.cat(normalisers, 2)  # (1, H, T)
        for before, own in _branches(spans):
            to_prefix, normaliser = _flash(
                query[:, :, own], keys[:, :, before], values[:, :, before], scale=scaling
            )
            to_own, own_normaliser = output[:, :, own], joint[:, :, own]
            both = torch.logaddexp(normaliser, own_normaliser)
            to_own.mul_((own_normaliser - both).exp()[..., None].to(to_own.dtype))
            to_own.addcmul_(to_prefix, (normaliser - both).exp()[..., None].to(to_own.dtype))
            joint[:, :, own] = both
        ctx.spans, ctx.scaling = spans, scaling
        ctx.save_for_backward(query, key, value, result, joint)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, joint = ctx.saved_tensors
        keys, values = (_for_each_query(states, query) for states in (key, value))
        output, grad = result.transpose(1, 2), grad.transpose(1, 2)
        totals = [torch.empty_like(query) for _ in range(3)]

        def found(own: slice, seen: slice, *, causal: bool) -> Sequence[Tensor]:
            parts = grad[:, :, own], query[:, :, own], keys[:, :, seen], values[:, :, seen]
            ends = output[:, :, own], joint[:, :, own]
            gradients: Sequence[Tensor] = _flash_backward(
                *parts, *ends, 0.0, causal, scale=ctx.scaling
            )
            return gradients

        for span in ctx.spans:
            own = slice(*span.own)
            for total, part in zip(totals, found(own, own, causal=True), strict=True):
                total[:, :, own] = part
        for before, own in _branches(ctx.spans):
            of_query, of_key, of_value = found(own, before, causal=False)
            totals[0][:, :, own] += of_query
            totals[1][:, :, before] += of_key
            totals[2][:, :, before] += of_value
        of_query, of_keys, of_values = totals
        return of_query, _summed(of_keys, key), _summed(of_values, value), None, None


def _branches(spans: Sequence[Span]) -> Iterator[tuple[slice, slice]]:
    """Each prefix with all positions that see it from spans of their own."""
    for (first, last), branches in groupby(spans, lambda span: span.prefix):
        if first < last:
            owns = [span.own for span in branches]
            yield slice(first, last), slice(owns[0][0], owns[-1][1])


def _for_each_query(states: Tensor, query: Tensor) -> Tensor:
    """Keys or values with a head for each head of the query."""
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, 1)


def _summed(gradient: Tensor, states: Tensor) -> Tensor:
    """The gradient of states from that of `_for_each_query`."""
    if gradient.shape == states.shape:
        return gradient
    return gradient.unflatten(1, (states.shape[1], -1)).sum(2)
