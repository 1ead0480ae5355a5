"""Adapters on tiny models, and a Llama in a few lines to hold them against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from alignment.adapters import adapter_config
from alignment.adapters.base import load_adapter
from tests.tiny import tiny_model

SETTINGS: dict[str, dict[str, Any]] = {
    "clm": {},
    "aligner": {"tokens": 3, "start_layer": 0},
    "panacea": {"r": 3},
}
"""What each adapter is tested with on a model of two layers."""

IDS = torch.tensor([[5, 17, 3, 99, 42, 7, 120, 61], [8, 8, 200, 31, 4, 77, 13, 90]])


def adapted(name: str, family: str = "llama", *, moved: float = 0.0, **options: Any) -> PeftModel:
    """A tiny model with a fresh adapter, or one whose weights have been moved at random."""
    torch.manual_seed(3)
    model = get_peft_model(tiny_model(family, **options), adapter_config(name, SETTINGS[name]))
    with torch.no_grad():
        for weight in trained(model).values():
            weight.add_(moved * torch.randn_like(weight))
    return model.eval()


def trained(model: Any) -> dict[str, Tensor]:
    """The weights that training would change."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    """(B, T, V)."""
    found: Tensor = model(ids, **kwargs).logits
    return found


def saved(model: PeftModel, folder: Path) -> Path:
    """The folder of an adapter that has been saved."""
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, family: str = "llama", **settings: Any) -> PeftModel:
    """A fresh tiny model with a saved adapter."""
    return load_adapter(tiny_model(family), folder, settings).eval()


Block = Callable[[Tensor], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def llama_blocks(model: Any, read: Sequence[Any] = ()) -> list[Block]:
    """The layers of a Llama as functions of (T, H), for one sequence, from its weights alone.

    Args:
        model: A Llama without adapter.
        read: For each layer what a head finds beside its own attention: a function of rotated
            queries (A, T, D) that gives (A, T, D), or None.
    """
    layers = model.model.layers
    return [
        _block(layer, model.config, read[index] if read else None)
        for index, layer in enumerate(layers)
    ]


def run_blocks(model: Any, blocks: Sequence[Block], hidden: Tensor) -> Tensor:
    """(T, V) logits of a Llama from its embeddings (T, H)."""
    for block in blocks:
        hidden = block(hidden)
    return _norm(hidden, model.model.norm) @ model.lm_head.weight.T


def _norm(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight


def _rotated(x: Tensor, base: float) -> Tensor:
    """(A, T, D) turned by the positions 0 to T - 1."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def _block(layer: Any, config: Any, read: Any) -> Block:
    attention, mlp, width = layer.self_attn, layer.mlp, config.head_dim
    groups = config.num_attention_heads // config.num_key_value_heads
    base = config.rope_parameters["rope_theta"]

    def block(hidden: Tensor) -> Tensor:
        x = _norm(hidden, layer.input_layernorm)
        query, key, value = (
            (x @ projection.weight.T).unflatten(-1, (-1, width)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = _rotated(query, base), _rotated(key, base)
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scores = query @ key.transpose(1, 2) / width**0.5
        later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        heads = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        if read is not None:
            heads = heads + read(query)
        hidden = hidden + heads.transpose(0, 1).flatten(1) @ attention.o_proj.weight.T
        x = _norm(hidden, layer.post_attention_layernorm)
        gated = torch.nn.functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
        return hidden + gated @ mlp.down_proj.weight.T

    return block
