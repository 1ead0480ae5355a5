"""Panacea: a LoRA in the form of a singular value decomposition, with preferences among the values.

One adapter for all trade-offs between several dimensions, such as helpful and harmless: the vector
that weighs them stands among the singular values of every adapted matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alignment.adapters.base import AdapterConfig, AdapterLayer, AdapterType, Tuner, register


@dataclass
class PanaceaConfig(AdapterConfig):
    """Settings of the adapter.

    Attributes:
        dimensions: How many dimensions a preference weighs.
        r: Singular values beside those of the preference.
        target_modules: Ends of the names of the linear layers to adapt; all but the head if unset.
        preference: What the adapter is used with: a weight per dimension, which are scaled to add
            up to one; all the same if unset.
    """

    when_used: ClassVar[tuple[str, ...]] = ("preference",)

    dimensions: int = field(default=2, metadata={"help": "how many a preference weighs"})
    r: int = field(default=8, metadata={"help": "singular values beside those of the preference"})
    target_modules: Any = field(default=None, metadata={"help": "linear layers; all if unset"})
    preference: Any = field(default=None, metadata={"help": "a weight per dimension"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterType.PANACEA
        if self.dimensions < 2 or self.r < 0:
            raise ValueError("dimensions must be at least 2 and r at least 0")
        if not _are_names(self.target_modules):
            raise ValueError(
                f"target_modules is {self.target_modules!r}; it must be names of linear layers, or "
                "null for all of them"
            )
        if self.preference is not None:
            self.preference = on_simplex(self.preference, self.dimensions)


def _are_names(value: object) -> bool:
    if isinstance(value, list | tuple | set):
        return bool(value) and all(isinstance(name, str) for name in value)
    return value is None or isinstance(value, str)


def on_simplex(preference: Sequence[float], dimensions: int) -> list[float]:
    """A preference whose weights add up to one.

    Raises:
        ValueError: It has another number of dimensions, a weight below zero, or none above it.
    """
    if not isinstance(preference, (list, tuple)) or len(preference) != dimensions:
        raise ValueError(f"preference is {preference}; it must be {dimensions} numbers")
    total = math.fsum(preference)
    if min(preference) < 0 or not 0 < total < math.inf:
        raise ValueError(f"preference is {preference}; weights are at least 0, and one is above it")
    return [weight / total for weight in preference]


class PanaceaLayer(AdapterLayer):
    """A linear layer with an adapter that a preference steers.

    Args:
        base_layer: The linear layer.
    """

    adapter_layer_names = ("panacea_left", "panacea_right", "panacea_values", "panacea_scales")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.panacea_left = nn.ParameterDict()
        self.panacea_right = nn.ParameterDict()
        self.panacea_values = nn.ParameterDict()
        self.panacea_scales = nn.ParameterDict()

    def add(self, name: str, config: PanaceaConfig, _model: Any) -> None:
        """Adds an adapter that changes nothing yet."""
        layer = self.base_layer
        weight = layer.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        rank = config.r + config.dimensions
        for part, size in (
            (self.panacea_left, layer.out_features),
            (self.panacea_right, layer.in_features),
        ):
            drawn = nn.init.orthogonal_(torch.empty(size, rank, device=weight.device))
            part[name] = nn.Parameter(drawn.to(dtype))
        zeros = torch.zeros(config.r, dtype=dtype, device=weight.device)
        self.panacea_values[name] = nn.Parameter(zeros)
        self.panacea_scales[name] = nn.Parameter(zeros.new_zeros(1))
        uniform = [1 / config.dimensions] * config.dimensions
        self.preferences[name] = config.preference or uniform

    def singular_values(self, name: str) -> Tensor:
        """(r + dimensions,) those learnt, then those that the preference sets."""
        values, scale = self.panacea_values[name], self.panacea_scales[name]
        return torch.cat([values, scale * scale.new_tensor(self.preferences[name])])

    def change(self, name: str) -> Tensor:
        """(out, in), what the adapter adds to the weight."""
        return (self.panacea_left[name] * self.singular_values(name)) @ self.panacea_right[name].T

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., out) of (..., in)."""
        if self.disable_adapters:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.in_use:
            left, right = self.panacea_left[name], self.panacea_right[name]
            inner = x.to(right.dtype) @ right * self.singular_values(name)
            result = result + (inner @ left.T).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds what the adapter adds at its preference to the weight.

        Raises:
            ValueError: The weight is quantised, or what would be added is no number.
        """
        weight = self.base_layer.weight
        if not weight.is_floating_point():
            raise ValueError("the weights are quantised: merge into the model dequantised")
        for name in adapter_names or self.active:
            if name in self.panacea_values and name not in self.merged_adapters:
                change = self.change(name)
                if safe_merge and not torch.isfinite(change).all():
                    raise ValueError(f"adapter `{name}` holds NaN or infinity")
                weight.data += change.to(weight)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Takes what was merged out of the weight again."""
        weight = self.base_layer.weight
        while self.merged_adapters:
            weight.data -= self.change(self.merged_adapters.pop()).to(weight)


class PanaceaModel(Tuner):
    """Adapts linear layers by matrices in SVD form that hold a preference.

    Paper: Panacea: Pareto Alignment via Preference Adaptation for LLMs, arXiv 2402.02030.

    W = W_0 + U diag(sigma_1 .. sigma_k, s lambda_1 .. s lambda_m) V^T, with lambda the preference,
    and sigma, s, U and V trained, s one number per matrix.

    Differs: the formula is reconstructed from summaries. U and V have orthonormal columns at the
    start and are not held to them, sigma and s are zero at the start, and nothing else is scaled:
    our choices.
    """

    prefix = "panacea_"
    tuner_layer_cls = PanaceaLayer

    def targets(self, model: Any, config: PanaceaConfig) -> set[str]:
        """The names that the settings give to linear layers, or all of these but the head.

        Raises:
            ValueError: A name stands for no module, or for one that is not linear.
        """
        head, wanted = model.get_output_embeddings(), config.target_modules
        wanted = None if wanted == "all-linear" else wanted
        modules = {
            name: module.base_layer if isinstance(module, PanaceaLayer) else module
            for name, module in model.named_modules()
            if ".base_layer" not in name and ".panacea_" not in name
        }
        if wanted is None:
            beside = {head, *(modules.get(name) for name in config.modules_to_save or ())}
            found = {n for n, m in modules.items() if isinstance(m, nn.Linear) and m not in beside}
            if not found:
                raise ValueError(f"`{model.config.model_type}` has no linear layer but its head")
            return found
        targets = {wanted} if isinstance(wanted, str) else {*wanted}
        for target in sorted(targets):
            found = {n for n in modules if n == target or n.endswith(f".{target}")}
            if not found:
                raise ValueError(f"the model has no module `{target}`")
            other = next((n for n in sorted(found) if not isinstance(modules[n], nn.Linear)), None)
            if other is not None:
                kind = type(modules[other]).__name__
                raise ValueError(f"`{other}` is a {kind}; Panacea adapts linear layers alone")
        return targets


CONFIG = PanaceaConfig
register(AdapterType.PANACEA, PanaceaConfig, PanaceaModel)
