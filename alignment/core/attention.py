"""What a packed position may see, in the form a transformers model takes.

One rule covers every layout: a position sees the earlier positions of its own sequence that lie on
the prefix or on its own branch. A sliding window cuts by distance of position ids, not of packed
indices.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from alignment.core.packing import PADDING, PackedBatch
from alignment.core.ragged import FLEX, RAGGED, SpanMask

Mask: TypeAlias = "Tensor | BlockMask | dict[str, Tensor | BlockMask]"

_FULL, _SLIDING = "full_attention", "sliding_attention"
_BACKENDS = ("sdpa", "eager", RAGGED, FLEX)
_BY_INDEX = ("bloom", "gpt_neo", "mpt", "openai-gpt")
"""Architectures whose distances or windows go by index in the row, whatever the position ids."""


def why_not_shared(config: Any) -> str | None:
    """Why a model cannot share a prefix between responses, or None where it can.

    Args:
        config: The model's configuration.

    Returns:
        One clause for a message.
    """
    config = config.get_text_config()
    backend = config._attn_implementation
    if backend not in _BACKENDS:
        return f"attn_implementation `{backend}` takes no custom mask (use sdpa or flex_attention)"
    kinds = set(getattr(config, "layer_types", None) or [_FULL])
    if other := sorted(kinds - {_FULL, _SLIDING}):
        return f"its layers of type {', '.join(other)} carry state along the row"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if not hasattr(config, "num_attention_heads") or _is_recurrent(config):
        return f"`{config.model_type}` is not attention all the way"
    if config.model_type in _BY_INDEX or getattr(config, "alibi", False):
        return f"`{config.model_type}` takes distances from places in the row, not position ids"
    return None


def rotations_change_after(config: Any) -> int | None:
    """Positions beyond which one sequence changes the rotations of all in its batch.

    Longrope and dynamic scaling choose them by the longest sequence of a forward pass.

    Returns:
        None for models whose rotations are always the same.
    """
    config = config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = [part for part in settings.values() if isinstance(part, dict)] or [settings]
    ends = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(ends, default=None)


@torch.compiler.disable  # what a batch may see is none of a compiled model's business
def attention_mask(batch: PackedBatch, config: Any, dtype: torch.dtype) -> Mask:
    """The `attention_mask` argument for one forward pass.

    Args:
        batch: The packed batch.
        config: The model's configuration.
        dtype: Dtype of the hidden states, for additive masks.

    Returns:
        (B, T) int64 where rows are single sequences; otherwise (B, 1, T, T), boolean for SDPA and
        additive for eager attention, block-sparse for FlexAttention, or what carries the spans of
        the ragged layout; a dict of those by layer type for models that mix layer types.

    Raises:
        ValueError: The batch is ragged and the model was not prepared for that.
    """
    if batch.layout != "ragged" and batch.one_sequence_per_row:
        return (batch.sequence != PADDING).long()
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not kinds:
        kinds = {_FULL} if window is None else {_SLIDING}
    backend = config._attn_implementation
    if batch.layout == "ragged" and backend not in (RAGGED, FLEX):
        raise ValueError(f"`{backend}` attention cannot compute ragged batches")
    seen = None
    masks: dict[str, Tensor | BlockMask] = {}
    for kind in kinds:
        limit = None if kind == _FULL else window
        if backend == FLEX:
            masks[kind] = _block_mask(batch, limit)
        elif batch.layout == "ragged":
            masks[kind] = SpanMask.of(batch, limit)
        else:
            seen = visible(batch) if seen is None else seen
            mask = seen if limit is None else seen & within(batch, limit)
            masks[kind] = _for_backend(mask[:, None], backend, dtype)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def visible(batch: PackedBatch) -> Tensor:
    """(B, T, T) bool, whether query t may see key s; padding sees earlier padding."""
    return _sees(batch, *_everywhere(batch))


def within(batch: PackedBatch, window: int) -> Tensor:
    """(B, T, T) bool, whether two positions are less than `window` tokens apart."""
    return _near(batch, window, *_everywhere(batch))


def _sees(batch: PackedBatch, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The rule, without a window, for indices that broadcast."""
    sequence, branch = batch.sequence, batch.branch
    own_branch = branch[row, query] == branch[row, key]
    return (
        (key <= query)
        & (sequence[row, query] == sequence[row, key])
        & (own_branch | (branch[row, key] == 0))
    )


def _near(batch: PackedBatch, window: int, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    positions = batch.position_ids
    return positions[row, query] - positions[row, key] < window


def _everywhere(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Row, query and key of a dense mask: (B, 1, 1), (1, T, 1), (1, 1, T)."""
    rows, length = (torch.arange(n, device=batch.sequence.device) for n in batch.sequence.shape)
    return rows[:, None, None], length[None, :, None], length[None, None, :]


def _block_mask(batch: PackedBatch, window: int | None) -> BlockMask:
    """For FlexAttention, which looks at blocks of 128 positions and skips empty ones.

    It is built block by block on CUDA, where it is compiled.
    """

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = _sees(batch, row, query, key)
        return seen if window is None else seen & _near(batch, window, row, query, key)

    rows, length = batch.sequence.shape
    device = batch.sequence.device
    on_cuda = device.type == "cuda"
    return create_block_mask(sees, rows, None, length, length, device=str(device), _compile=on_cuda)


def _for_backend(mask: Tensor, backend: str, dtype: torch.dtype) -> Tensor:
    if backend != "eager":
        return mask
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return additive.masked_fill_(~mask, torch.finfo(dtype).min)


def _is_recurrent(config: Any) -> bool:
    return any(hasattr(config, name) for name in ("ssm_cfg", "state_size", "mamba_d_state", "rwkv"))
