"""What our adapters share: how peft comes to know them, and how they find their way in a model."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig, PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from alignment.cli import UserError, unknown
from alignment.core.methods import check_kinds


class AdapterType(enum.StrEnum):
    """What `adapter_config.json` calls our adapters.

    peft's own enumeration cannot be extended, and `register_peft_method` takes its members alone.
    Its tables are looked up by the text in the file, though, and a text is what these are.
    """

    CLM = "CLM"
    ALIGNER = "ALIGNER"
    PANACEA = "PANACEA"


@dataclass
class AdapterConfig(PeftConfig):
    """The settings of an adapter, as `adapter_config.json` holds them.

    Attributes:
        target_modules: The modules that carry the adapter; found in the model unless given.
        modules_to_save: Modules that are trained along and saved with it, such as a value head.
    """

    when_used: ClassVar[tuple[str, ...]] = ()
    """Settings that are no part of training: whoever uses the adapter may choose them."""

    target_modules: Any = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kinds(self)

    def chosen(self, settings: Mapping[str, Any]) -> AdapterConfig:
        """The same adapter, used with other settings.

        Raises:
            UserError: It has no such setting to choose, or the value is out of range.
        """
        for key in settings:
            if key not in self.when_used:
                raise unknown("setting to use the adapter with", key, self.when_used)
        try:
            return replace(self, **settings)
        except (TypeError, ValueError) as error:
            raise UserError(f"adapter_kwargs: {error}") from None


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the model with the adapters that it carries.

    Args:
        base_layer: The module.

    Attributes:
        preferences: The weights of dimensions that steer an adapter, by its name; empty where none
            is steered.
    """

    base_layer: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self.preferences: dict[str, list[float]] = {}

    def add(self, name: str, config: Any, model: Any) -> None:
        """Adds an adapter that changes nothing yet.

        Args:
            name: Its name.
            config: Its settings.
            model: The model that it is part of.
        """
        raise NotImplementedError

    @property
    def active(self) -> list[str]:
        """The active adapters that this module carries."""
        layer: Any = self  # peft's part of it is untyped
        there = layer._get_available_adapters()
        return [name for name in layer.active_adapters if name in there]

    @property
    def in_use(self) -> list[str]:
        """The same, but none where adapters are switched off."""
        return [] if self.disable_adapters else self.active


class Tuner(BaseTuner):
    """A peft tuner that finds its targets in the model instead of being told."""

    tuner_layer_cls: type[AdapterLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def targets(self, model: PreTrainedModel, config: Any) -> set[str]:
        """Full names of the modules that carry the adapter.

        Raises:
            ValueError: The architecture lacks something; the message names what.
        """
        raise NotImplementedError

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Puts an adapter into the model."""
        config = self.peft_config[adapter_name]
        config.target_modules = self.targets(model, config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(  # noqa: PLR0913 - peft's signature
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer: Any = target
        if not isinstance(layer, self.tuner_layer_cls):
            layer = self.tuner_layer_cls(target)
            self._replace_module(parent, target_name, layer, target)
        layer.add(adapter_name, peft_config, self.model)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    def _replace_module(self, parent: Any, name: str, new: Any, _old: Any) -> None:
        setattr(parent, name, new)


def register(kind: AdapterType, config: type[AdapterConfig], tuner: type[Tuner]) -> None:
    """Makes an adapter known to peft, under the type that its configuration names."""
    PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
    PEFT_TYPE_TO_TUNER_MAPPING[kind] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = tuner.prefix


def read_settings(folder: str | Path) -> PeftConfig:
    """The settings of a saved adapter, of peft or of ours.

    Args:
        folder: As `save_pretrained` writes it, or a Hub id.

    Raises:
        UserError: It is no adapter, or of a kind that is not known.
    """
    try:
        return PeftConfig.from_pretrained(str(folder))
    except KeyError as error:
        raise UserError(
            f"`{folder}` is an adapter of the type {error}, which neither peft nor this project "
            "knows: install what it was trained with"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"`{folder}` is no adapter: {str(error).splitlines()[0]}") from None


def load_adapter(
    model: PreTrainedModel,
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    is_trainable: bool = False,
) -> PeftModel:
    """Puts a saved adapter, of peft or of ours, on its base model.

    Args:
        model: The base model.
        folder: As `save_pretrained` writes it, or a Hub id.
        settings: What the adapter is used with, where that is not what its file says.
        is_trainable: Whether training goes on.

    Raises:
        UserError: It is no adapter, or has no such settings.
        ValueError: It does not fit the model.
    """
    config = read_settings(folder)
    if settings:
        if not isinstance(config, AdapterConfig):
            raise UserError(
                f"`{folder}` is an adapter of peft's own, which takes no adapter_kwargs"
            )
        config = config.chosen(settings)
    return PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=is_trainable)


def set_preference(model: nn.Module, preference: Sequence[float]) -> None:
    """Steers every adapter of a model by a preference.

    Raises:
        UserError: The model has no adapter that takes one, or one of another number of dimensions.
    """
    layers = [m for m in model.modules() if isinstance(m, AdapterLayer) and m.preferences]
    if not layers:
        raise UserError("no adapter of the policy takes a preference: set `adapter: panacea`")
    known = {len(before) for layer in layers for before in layer.preferences.values()}
    if known != {len(preference)}:
        raise UserError(
            f"the objective weighs {len(preference)} dimensions and the adapter {max(known)}: set "
            "`dimensions` alike in `objective_kwargs` and `adapter_kwargs`"
        )
    for layer in layers:
        layer.preferences = {name: list(preference) for name in layer.preferences}


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of a model's layers, and its name.

    Raises:
        ValueError: There is none.
    """
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"`{model.config.model_type}` has no list of its {count} layers")


def leaf(name: str) -> str:
    """What a parameter belongs to: `mlp.down_proj.weight` and `down_proj_bias` to `down_proj`."""
    parts = [part for part in name.split(".") if part not in ("weight", "bias")]
    return re.sub("_bias$", "", parts[-1])
