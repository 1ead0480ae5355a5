"""CLM: one layer before the first, the identity at first, and the only one that is trained.

It maps embeddings as they are to embeddings that the frozen model above answers as wished. Whoever
uses it may walk part of the way, or beyond: h = (1 - c) h_plain + c h_aligned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache

from alignment.adapters.base import (
    AdapterConfig,
    AdapterLayer,
    AdapterType,
    Tuner,
    decoder_layers,
    leaf,
    register,
)

_OUTPUTS = (
    *("o_proj", "out_proj", "dense", "c_proj", "wo"),
    *("down_proj", "fc2", "dense_4h_to_h", "w2"),
)
"""Names of the projections by which a layer adds to what passes through it."""

_NORMS_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm")


@dataclass
class CLMConfig(AdapterConfig):
    """Settings of CLM's layer.

    Attributes:
        coefficient: How far to go from the plain to the aligned embeddings: 0 is the base model, 1
            what was trained, more than 1 goes on beyond it.
    """

    when_used: ClassVar[tuple[str, ...]] = ("coefficient",)

    coefficient: float = field(default=1.0, metadata={"help": "how far to go; 0 is the base model"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterType.CLM


class CLMLayer(AdapterLayer):
    """A model's first layer, behind the layer that was put before it.

    Args:
        base_layer: The first layer.
    """

    adapter_layer_names = ("clm_layers",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.clm_layers = nn.ModuleDict()
        self.coefficients: dict[str, float] = {}
        self.slot = 0

    def add(self, name: str, config: CLMConfig, model: Any) -> None:
        """Adds an adapter: a copy of the first layer that adds nothing yet."""
        # Keys and values of the inserted layer lie in a cache behind those of all others.
        self.slot = model.config.get_text_config().num_hidden_layers
        # The configuration stays the model's: it says how to attend, and that may change.
        configs = (m.config for m in self.base_layer.modules() if hasattr(m, "config"))
        inserted = copy.deepcopy(self.base_layer, {id(config): config for config in configs})
        for weight in _outputs(inserted):
            nn.init.zeros_(weight)
        _number(inserted, self.slot)
        self.clm_layers[name] = inserted.requires_grad_(True)
        self.coefficients[name] = float(config.coefficient)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the first layer makes of (B, T, H) embeddings, aligned by the active adapter."""
        for name in self.in_use:
            if self.coefficients[name] != 0:
                hidden = self._aligned(name, hidden, *args, **kwargs)
        return self.base_layer(hidden, *args, **kwargs)

    def _aligned(self, name: str, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inserted = self.clm_layers[name]
        for cache in (one for one in (*args, *kwargs.values()) if isinstance(one, Cache)):
            _make_room(cache, self.slot)
        # The adapter may be kept in a higher precision than the model.
        given = hidden.to(next(inserted.parameters()).dtype)
        aligned = inserted(given, *args, **kwargs)
        aligned = aligned[0] if isinstance(aligned, tuple) else aligned
        return torch.lerp(given, aligned.to(given.dtype), self.coefficients[name]).to(hidden.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible within a layer; `merge_and_unload` gives a model of one layer more."""
        raise ValueError("a layer is merged by `merge_and_unload` alone, which makes it the first")


class CLMModel(Tuner):
    """Puts one trained layer before the first of a frozen model.

    Paper: Adding Alignment Control to Language Models, arXiv 2503.04346.

    h_1 = (1 - c) E(x) + c layer(E(x)), with E(x) the embeddings and c the coefficient.

    Differs: the paper's summary says one layer before the first, the identity at the start, trained
    alone; how it is made one is not told there. Ours is a copy of the first layer whose projections
    back to the residual stream are zero.
    """

    prefix = "clm_"
    tuner_layer_cls = CLMLayer

    def targets(self, model: Any, _config: Any) -> set[str]:
        """The first layer.

        Raises:
            ValueError: Its weights are quantised or sharded, or it is none whose copy can be made
                the identity.
        """
        name, layers = decoder_layers(model)
        first: Any = layers[0]
        if isinstance(first, CLMLayer):
            first = first.base_layer
        if not all(weight.is_floating_point() for weight in first.parameters()):
            raise ValueError("CLM trains a copy of the first layer, whose weights are quantised")
        if any(hasattr(weight, "ds_id") for weight in first.parameters()):
            raise ValueError("CLM copies the first layer, which ZeRO-3 has sharded: take ZeRO-2")
        for child, _ in first.named_children():
            if child in _NORMS_AFTER:
                raise ValueError(
                    f"layers of `{model.config.model_type}` normalise what they add (`{child}`), "
                    "so that no small step away from the identity exists"
                )
        list(_outputs(first))
        return {f"{name}.0"}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft looks for the name at the end of a key; here a whole layer comes after it.
        return key.replace(f".clm_layers.{adapter_name}.", ".clm_layers.")

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """The model without adapter, or with its layer as the first of one layer more.

        Raises:
            ValueError: The coefficient is not 1, and what is then added up is no layer.
        """
        _, layers = decoder_layers(self.model)
        first: Any = layers[0]
        names = (adapter_names or first.active_adapters) if merge else []
        for name in names:
            if first.coefficients[name] != 1:
                raise ValueError(
                    f"at coefficient {first.coefficients[name]:g} it is a mixture of two "
                    "embeddings, which no single layer gives: it can be merged at 1 alone"
                )
        model: nn.Module = super()._unload_and_optionally_merge(False, progressbar)
        for name in names:
            _insert(model, first.clm_layers[name])
        return model


def _insert(model: Any, layer: nn.Module) -> None:
    """Makes a layer the first of a model."""
    _, layers = decoder_layers(model)
    layers.insert(0, layer.to(next(layers.parameters()).dtype))
    config = model.config.get_text_config()
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0], *config.layer_types]
    for index, one in enumerate(layers):
        _number(one, index)


def _number(layer: nn.Module, index: int) -> None:
    """Tells a layer its place, which is where it looks in a cache."""
    modules: Iterator[Any] = layer.modules()
    for module in modules:
        if hasattr(module, "layer_idx"):
            module.layer_idx = index


def _outputs(layer: nn.Module) -> Iterator[nn.Parameter]:
    """The weights by which the parts of a layer add to what passes through it.

    Raises:
        ValueError: A part has none of a known name.
    """
    for name, part in layer.named_children():
        if all(weight.dim() < 2 for weight in part.parameters()):
            continue
        found = [w for own, w in part.named_parameters(name) if leaf(own) in _OUTPUTS]
        if not found:
            raise ValueError(
                f"`{name}` of a layer has no output projection (one of {', '.join(_OUTPUTS)}), "
                "which CLM needs to begin as the identity"
            )
        yield from found


def _make_room(cache: Cache, slot: int) -> None:
    """A cache for the layers of the base model gets one layer more, of the kind of the first."""
    while cache.layer_class_to_replicate is None and len(cache.layers) <= slot:
        # The inserted layer comes before all others, so the first is still empty.
        cache.layers.append(copy.deepcopy(cache.layers[0]))


CONFIG = CLMConfig
register(AdapterType.CLM, CLMConfig, CLMModel)
