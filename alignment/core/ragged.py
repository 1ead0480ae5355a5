"""Attention over the spans of one long row, without padding and without a mask of the row.

A group is a few spans: its prefix with the first branch, and each other branch, which sees the
prefix and itself. Attention works through them one by one, so nothing is computed that a position
may not see, and no tensor has the square of the row. For transformers it is an attention
implementation of its own, `RAGGED`, which is SDPA for any call but a ragged batch's. FlexAttention
takes the same rows with a block-sparse mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment.core.cascade import cascade, cascades
from alignment.core.packing import Layout, PackedBatch, Span

RAGGED, FLEX = "ragged_sdpa", "flex_attention"

MaskedSpans: TypeAlias = "list[tuple[Span, Tensor | None]]"
"""Each with its (1, 1, n, m) mask over prefix and own positions; None where own positions are all
there is and none lies beyond the window."""
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
RandomState: TypeAlias = tuple[Tensor, list[int], list[Tensor]]
"""Of the CPU, and of devices by their index."""


def takes_ragged(model: PreTrainedModel) -> bool:
    """Whether a model that can share a prefix can do so in one row without padding."""
    backend = model.config.get_text_config()._attn_implementation
    return backend in (RAGGED, FLEX) or (backend == "sdpa" and model._can_set_attn_implementation())


def without_padding(layout: Layout, models: Iterable[PreTrainedModel]) -> Layout:
    """The ragged layout in place of the shared one, where every model takes it."""
    return "ragged" if layout == "shared" and all(map(takes_ragged, models)) else layout


def allow_ragged(model: PreTrainedModel) -> None:
    """Lets a model compute ragged batches beside all that it does already, where it can."""
    if takes_ragged(model) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(RAGGED)


class SpanMask(Tensor):
    """Passes through a model in place of a mask and tells attention the spans.

    Attributes:
        spans: What attends to what.
        window: How far a position looks back, itself included; None for all that it may see.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    spans: tuple[Span, ...]
    window: int | None

    @staticmethod
    def of(batch: PackedBatch, window: int | None) -> SpanMask:
        """For the layers of a model that look back no further than `window`, None for any.

        Args:
            batch: In the ragged layout.
            window: Position ids.
        """
        device = batch.input_ids.device
        # Four dimensions: models take it for a mask that is ready for use.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device).as_subclass(SpanMask)
        mask.spans, mask.window = batch.spans, window
        return mask

    def detach(self) -> SpanMask:
        """Itself: activation checkpointing detaches what a layer takes, and keeps its spans."""
        return self

    @cached_property
    def windowed(self) -> bool:
        """Whether there is a position that does not see all that lies before it."""
        return self.window is not None and any(map(self.window.__lt__, map(_reach, self.spans)))

    @cached_property
    def masked(self) -> MaskedSpans:
        """Each span with its mask, made by the first layer that wants them."""
        return [(span, _span_mask(span, self.window, self.device)) for span in self.spans]


def _reach(span: Span) -> int:
    """How many positions the last one of a span sees, itself included."""
    (first, last), (start, end) = span
    return last - first + end - start


def _span_mask(span: Span, window: int | None, device: torch.device) -> Tensor | None:
    keys, queries = _reach(span), span.own[1] - span.own[0]
    if keys == queries and (window is None or keys <= window):
        return None
    # Prefix and own positions are consecutive position ids, whatever lies between them in the row.
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return (seen if window is None else seen.triu_(keys - queries - window + 1))[None, None]


@torch.compiler.disable  # spans differ from batch to batch
def _ragged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA, span by span where the mask says so; the signature is that of transformers."""
    if not isinstance(attention_mask, SpanMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    plain = not (attention_mask.windowed or kwargs.get("dropout") or "position_bias" in kwargs)
    if plain and cascades(query, key, value):
        return cascade(query, key, value, attention_mask.spans, kwargs.get("scaling")), None

    def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        given = {**kwargs, "is_causal": None}
        return sdpa_attention_forward(module, query, keys, values, mask, **given)[0]

    draws = bool(kwargs.get("dropout"))
    output: Tensor = _SpanAttention.apply(query, key, value, attend, attention_mask.masked, draws)
    return output, None


class _SpanAttention(torch.autograd.Function):
    """Attention span by span, which keeps its inputs alone for the backward pass.

    There every span is computed once more, with the same dropout. Autograd would instead keep a
    copy of the prefix's keys and values for each of its branches, and add up gradients in tensors
    of the whole row, one for each span.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes positional arguments
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attend: Attend,
        spans: MaskedSpans,
        draws: bool,
    ) -> Tensor:
        ctx.attend, ctx.spans = attend, spans
        ctx.random = (torch.get_rng_state(), *get_device_states(query)) if draws else None
        ctx.save_for_backward(query, key, value)
        device = query.device.type
        ctx.autocast = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        parts = [
            attend(query[:, :, slice(*span.own)], _seen(key, span), _seen(value, span), mask)
            for span, mask in spans
        ]
        return torch.cat(parts, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dtype, enabled = ctx.autocast
        inputs = [tensor.detach() for tensor in ctx.saved_tensors]
        query, key, value = inputs
        totals = [torch.zeros_like(tensor) for tensor in inputs]
        with (
            torch.enable_grad(),
            torch.autocast(grad.device.type, dtype, enabled=enabled),
            _drawing_again(ctx.random),
        ):
            for span, mask in ctx.spans:
                before, own = slice(*span.prefix), slice(*span.own)
                length = span.prefix[1] - span.prefix[0]
                parts = [query[:, :, own], _seen(key, span), _seen(value, span)]
                output = ctx.attend(*(part.requires_grad_() for part in parts), mask)
                found = torch.autograd.grad(output, parts, grad[:, own])
                totals[0][:, :, own] = found[0]
                for total, part in zip(totals[1:], found[1:], strict=True):
                    total[:, :, own] += part[:, :, length:]
                    total[:, :, before] += part[:, :, :length]
        return *totals, None, None, None


@contextmanager
def _drawing_again(random: RandomState | None) -> Iterator[None]:
    """Random numbers come as they came after a state was taken."""
    if random is None:
        yield
        return
    cpu, devices, states = random
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
        yield


def _seen(states: Tensor, span: Span) -> Tensor:
    """The keys or values that a span attends to: its prefix and its own."""
    (first, last), (start, end) = span
    own = states[:, :, start:end]
    return torch.cat([states[:, :, first:last], own], 2) if first < last else own


AttentionInterface.register(RAGGED, _ragged_attention)
AttentionMaskInterface.register(RAGGED, sdpa_mask)
