"""Aligner: a few global tokens that the upper layers of a frozen model attend to.

All layers share the tokens; each reads them through its own frozen projections, and adds what it
finds by a gate per head that is closed at first.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignment.adapters.base import (
    AdapterConfig,
    AdapterLayer,
    AdapterType,
    Tuner,
    decoder_layers,
    register,
)

GLOBAL = "global_tokens"
"""The attention implementation that adds the tokens to whatever the model attends with."""


@dataclass
class AlignerConfig(AdapterConfig):
    """Settings of the global tokens.

    Attributes:
        tokens: How many there are.
        start_layer: The first layer that attends to them, counted from 0.
    """

    tokens: int = field(default=1, metadata={"help": "how many there are"})
    start_layer: int = field(default=2, metadata={"help": "first layer that sees them, from 0"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterType.ALIGNER
        if self.tokens < 1 or self.start_layer < 0:
            raise ValueError("tokens must be at least 1 and start_layer at least 0")


class AlignerLayer(AdapterLayer):
    """An attention module that also attends to global tokens.

    Args:
        base_layer: The attention module, with projections `k_proj` and `v_proj`.
    """

    adapter_layer_names = ("aligner_tokens", "aligner_gates")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.aligner_tokens = nn.ParameterDict()
        self.aligner_gates = nn.ParameterDict()
        self._holders: dict[str, AlignerLayer] = {}
        self.base_config = self.base_layer.config
        self.base_layer.config = _Configuration(self)

    def add(self, name: str, config: AlignerConfig, model: Any) -> None:
        """Adds an adapter, whose tokens the first layer that sees them holds for all."""
        others = (m for m in model.modules() if isinstance(m, AlignerLayer))
        holder = next((other for other in others if name in other.aligner_tokens), self)
        self._holders[name] = holder
        weight = self.base_layer.k_proj.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        if holder is self:
            size = self.base_layer.k_proj.in_features
            drawn = torch.randn(config.tokens, size, dtype=dtype, device=weight.device)
            self.aligner_tokens[name] = nn.Parameter(drawn)
        gates = torch.zeros(self.base_config.num_attention_heads, dtype=dtype, device=weight.device)
        self.aligner_gates[name] = nn.Parameter(gates)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the attention module, whose attention goes through `_attend`."""
        return self.base_layer(*args, **kwargs)

    def found(self, query: Tensor, scaling: float) -> Tensor | None:
        """What the heads find in the tokens.

        Args:
            query: (B, A, T, D) of A heads, as the layer's own attention takes them.
            scaling: Of the scores.

        Returns:
            (B, T, A, D), or None without an active adapter.
        """
        found = [self._read(name, query, scaling) for name in self.in_use]
        return sum(found[1:], found[0]) if found else None

    def _read(self, name: str, query: Tensor, scaling: float) -> Tensor:
        tokens = self._holders[name].aligner_tokens[name].to(query)
        keys, values = self._projected(tokens, query.shape[-1])  # (heads, M, D)
        scores = (query @ keys.transpose(-1, -2)).float() * scaling
        read = scores.softmax(-1).to(query.dtype) @ values
        return self.aligner_gates[name].to(query)[:, None] * read.transpose(1, 2)

    def _projected(self, tokens: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens for every head, each (A, M, D)."""
        attention = self.base_layer
        keys, values = attention.k_proj(tokens), attention.v_proj(tokens)
        norm = getattr(attention, "k_norm", None)
        if norm is not None and norm.weight.numel() != width:
            keys, norm = norm(keys), None
        keys, values = (part.unflatten(-1, (-1, width)) for part in (keys, values))
        keys = keys if norm is None else norm(keys)
        repeats = self.base_config.num_attention_heads // keys.shape[1]
        keys, values = (part.transpose(0, 1) for part in (keys, values))
        return keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)


class AlignerModel(Tuner):
    """Adds global tokens to the attention of a frozen model.

    Paper: Aligner: One Global Token is Worth Millions of Parameters When Aligning Large Language
    Models, arXiv 2312.05503.

    Attn'_l = Attn_l + g_l softmax(q P_l^K) P_l^V, with P_l^K and P_l^V the keys and values of the
    shared tokens in layer l; g_l is one number per head.

    Differs: the tokens are drawn from a standard normal distribution, which is our choice, and keys
    are normalised where the architecture normalises keys. Queries are those of the layer, rotated
    by their positions where it rotates; the tokens have no position.
    """

    prefix = "aligner_"
    tuner_layer_cls = AlignerLayer

    def targets(self, model: Any, config: AlignerConfig) -> set[str]:
        """The attention of every layer from the first that sees the tokens.

        Raises:
            ValueError: There is no such layer, or its attention is not made as it must be.
        """
        name, layers = decoder_layers(model)
        if config.start_layer >= len(layers):
            raise ValueError(
                f"start_layer is {config.start_layer}, but the layers are 0 to {len(layers) - 1}"
            )
        kind = model.config.model_type
        return {
            f"{name}.{index}.{_attention(layer, kind)}"
            for index, layer in enumerate(layers)
            if index >= config.start_layer
        }

    def _replace_module(self, parent: Any, name: str, new: Any, old: Any) -> None:
        if isinstance(old, AlignerLayer):
            new.config = old.base_config
        super()._replace_module(parent, name, new, old)

    def _check_merge_allowed(self) -> None:
        raise ValueError("global tokens are attended to, so no weight of the model can hold them")


class _Configuration:
    """A model's configuration, but for one attention module: it attends by `GLOBAL`."""

    _attn_implementation = GLOBAL

    def __init__(self, layer: AlignerLayer) -> None:
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        if name == "layer":  # while it is copied
            raise AttributeError(name)
        return getattr(self.layer.base_config, name)


def _attend(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """What the model attends with, and what the heads find in the tokens."""
    layer = module.config.layer
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    own = ALL_ATTENTION_FUNCTIONS.get_interface(layer.base_config._attn_implementation, eager)
    output, weights = own(module, query, *args, **kwargs)
    scaling = kwargs.get("scaling")
    found = layer.found(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return (output if found is None else output + found), weights


def _attention(layer: nn.Module, kind: str) -> str:
    """The name of a layer's attention.

    Raises:
        ValueError: There is none that keys and values of tokens can be had from.
    """
    for name, module in layer.named_children():
        module = module.base_layer if isinstance(module, AlignerLayer) else module
        if not hasattr(module, "k_proj") or not hasattr(module, "v_proj"):
            continue
        if "_attn_implementation" not in inspect.getsource(type(module).forward):
            raise ValueError(f"`{name}` of `{kind}` does not attend by transformers' interface")
        return name
    raise ValueError(
        f"layers of `{kind}` have no attention with `k_proj` and `v_proj`, through which global "
        "tokens would be read"
    )


CONFIG = AlignerConfig
register(AdapterType.ALIGNER, AlignerConfig, AlignerModel)
AttentionInterface.register(GLOBAL, _attend)
