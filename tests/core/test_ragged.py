"""Attention by spans: the values and gradients of autograd's own, and little kept for them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignment.core.packing import pack
from alignment.core.ragged import MaskedSpans, SpanMask, _ragged_attention
from tests.core.batches import ragged_groups

HEADS, KV_HEADS, WIDTH = 4, 2, 8


class Layer(nn.Module):
    """What attention reads of the module that calls it."""

    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True


def masks(window: int | None) -> SpanMask:
    return SpanMask.of(pack(ragged_groups(), "ragged", 0), window)


def states(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> Tensor:
        shape = (1, heads, length, WIDTH)
        return torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True)

    return drawn(HEADS), drawn(KV_HEADS), drawn(KV_HEADS)


def length_of(mask: SpanMask) -> int:
    return max(span.own[1] for span in mask.spans)


def expected(query: Tensor, key: Tensor, value: Tensor, spans: MaskedSpans) -> Tensor:
    """One dense softmax over the whole row."""
    length = query.shape[2]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for ((first, last), (start, end)), mask in spans:
        own = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if mask is None:
            seen[start:end, start:end] = own
        else:
            columns = [*range(first, last), *range(start, end)]
            seen[start:end, columns] = mask[0, 0]
    keys, values = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (key, value))
    scores = (query @ keys.transpose(2, 3) / WIDTH**0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


def ours(query: Tensor, key: Tensor, value: Tensor, mask: SpanMask, **kwargs: Any) -> Tensor:
    output, _ = _ragged_attention(Layer(), query, key, value, mask, scaling=WIDTH**-0.5, **kwargs)
    return output


def gradients(output: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()  # reentrant checkpointing takes no `torch.autograd.grad`
    found = []
    for part in inputs:
        assert part.grad is not None
        found.append(part.grad)
        part.grad = None
    return tuple(found)


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize(
    "reentrant", [None, False, True], ids=["kept", "checkpointed", "reentrant"]
)
def test_values_and_gradients_are_those_of_a_dense_softmax(
    window: int | None, reentrant: bool | None
):
    mask = masks(window)
    inputs = states(length_of(mask), torch.float64)
    if reentrant is None:
        output = ours(*inputs, mask)
    else:
        output = checkpoint(ours, *inputs, mask, use_reentrant=reentrant)
    dense = expected(*inputs, mask.masked)
    assert torch.allclose(output, dense, rtol=0, atol=1e-13)
    pairs = zip(gradients(output, inputs), gradients(dense, inputs), strict=True)
    for found, right in pairs:
        assert torch.allclose(found, right, rtol=0, atol=1e-12)


def test_the_backward_pass_has_the_dropout_of_the_forward_pass():
    """Against the difference of two forward passes that draw the same, along one direction."""
    mask = masks(None)
    inputs = states(length_of(mask), torch.float64)

    def loss(step: float) -> Tensor:
        torch.manual_seed(0)
        query, key, value = (part + step * part.detach().roll(1) for part in inputs)
        return ours(query, key, value, mask, dropout=0.5).square().sum()

    found = torch.autograd.grad(loss(0.0), inputs)
    drawn = torch.rand(1)
    slope = sum((part * at.detach().roll(1)).sum() for part, at in zip(found, inputs, strict=True))
    expected_slope = (loss(1e-6) - loss(-1e-6)).item() / 2e-6
    assert float(slope) == pytest.approx(expected_slope, rel=1e-6)
    loss(0.0)
    assert torch.equal(drawn, torch.rand(1))  # what is drawn after a backward pass stays the same


def test_the_backward_pass_has_the_precision_of_the_forward_pass():
    """Under autocast the second computation of a span is in bf16, like the first one."""
    mask = masks(None)
    inputs = states(length_of(mask), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(*inputs, mask)
    assert output.dtype == torch.bfloat16
    dense = expected(*inputs, mask.masked)
    pairs = zip(gradients(output, inputs), gradients(dense, inputs), strict=True)
    for found, right in pairs:
        assert found.dtype == torch.float32
        assert float((found - right).norm() / right.norm()) < 2e-2


@pytest.mark.parametrize(("window", "further"), [(None, [HEADS, HEADS * WIDTH]), (3, [])])
def test_inputs_are_kept_for_the_backward_pass_and_at_most_output_and_normaliser(
    window: int | None, further: list[int]
):
    mask = masks(window)
    length = length_of(mask)
    inputs = states(length, torch.float64)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ours(*inputs, mask)
    for tensor in inputs:
        del kept[tensor.data_ptr()]
    assert sorted(kept.values()) == [length * count for count in further]


@pytest.mark.parametrize(("window", "made"), [(None, False), (100, False), (3, True)])
def test_masks_are_made_only_where_a_position_does_not_see_all_before_it(
    window: int | None, made: bool
):
    mask = masks(window)
    ours(*states(length_of(mask), torch.float32), mask)
    assert ("masked" in vars(mask)) == made
