"""Tokenizer, policy and frozen models, with what public trainers learned the hard way."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model, set_seed
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.models.activation_offloading import get_act_offloading_ctx_manager
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path

from alignment.adapters.base import AdapterConfig, AdapterType
from alignment.cli import UserError, nearest
from alignment.compat import set_checkpointing_kwargs
from alignment.core.reference import fingerprint_files
from alignment.core.scoring import (
    REFERENCE_ADAPTER,
    VALUE_HEAD,
    add_scored_forward,
    add_value_head,
)
from alignment.trainers.config import GroupConfig

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

logger = logging.getLogger(__name__)

_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Adapter initialisations that move weight from the base model into the adapter, so that switching
the adapter off does not give the starting model back."""

_ADAPTER_WEIGHTS = ("lora_", *(f"{kind.lower()}_" for kind in AdapterType))
"""What names of an adapter's weights hold, and names of the base model's do not."""


@dataclass
class Policy:
    """The model to train and where it came from.

    Attributes:
        model: With its adapter, if any.
        base: Without it.
        source: The name it was loaded from; None for a model that was passed in.
        start: A copy of the starting weights, for a reference without an adapter; None where not
            needed.
    """

    model: Any
    base: PreTrainedModel
    source: str | None
    start: PreTrainedModel | None = None

    @property
    def trained_beside_adapter(self) -> list[str]:
        """Weights that train and are no part of the adapter, by name: it does not take them off."""
        if not is_peft_model(self.model):
            return []
        own = f".{self.model.active_adapter}."
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return [name for name in trained if own not in f"{name}."]

    def offloading(self, args: GroupConfig) -> Any:
        """The context that keeps activations on the host, or an empty one."""
        if args.activation_offloading:
            return get_act_offloading_ctx_manager(model=self.model)
        return contextlib.nullcontext()

    def frozen_reference(
        self,
        ref_model: str | PreTrainedModel | None,
        args: GroupConfig,
        quantization_config: BitsAndBytesConfig | None,
    ) -> PreTrainedModel | None:
        """The separate reference model, able to score packed batches; None where none is needed.

        Raises:
            UserError: The reference is the policy itself, or would move with it.
        """
        if ref_model is not None and ref_model is self.model:
            raise UserError(
                "`ref_model` is the policy itself; leave it out to compare with its start"
            )
        frozen: PreTrainedModel | None
        if isinstance(ref_model, str):
            is_policy = ref_model == self.base.config.name_or_path
            frozen = load_model(ref_model, args, quantization_config, is_policy=is_policy)
        else:
            frozen = ref_model
        if frozen is None and not is_peft_model(self.model) and not args.precompute_ref_log_probs:
            frozen = self.start
            if frozen is None and self.source is not None:
                frozen = load_model(self.source, args, quantization_config)
        if frozen is None:
            moving = self.trained_beside_adapter
            if moving and not args.precompute_ref_log_probs:
                raise UserError(
                    f"`{moving[0]}` trains and is no part of the adapter, so that the reference, "
                    "which is the policy without it, would move along: set `bias` of the adapter "
                    "to `none`, `precompute_ref_log_probs: true` or `ref_model_name_or_path`"
                )
            return None
        frozen.requires_grad_(False)
        if args.disable_dropout:
            disable_dropout(frozen)
        add_scored_forward(frozen)
        return frozen

    def reference_name(
        self, ref_model: str | PreTrainedModel | None, frozen: PreTrainedModel | None, memo: Path
    ) -> str:
        """Names the reference by its content, for stored values.

        To be asked before the engine deals out weights and a checkpoint is read, for the reference
        may be the policy as it starts.

        Args:
            ref_model: A separate reference, or its name.
            frozen: The same, loaded; None for the policy as it starts.
            memo: JSON file of what is known of files.
        """
        reference, source = (self.base, self.source) if frozen is None else (frozen, ref_model)
        name = _fingerprint_source(source, reference, memo) if isinstance(source, str) else None
        adapter = ""
        if frozen is None and REFERENCE_ADAPTER in getattr(self.model, "peft_config", {}):
            adapter = _fingerprint_weights(self.model, f".{REFERENCE_ADAPTER}.")
        settings = repr((reference.config.to_json_string(), str(reference.dtype)))
        settled = hashlib.sha256(settings.encode()).hexdigest()
        return ":".join((name or _fingerprint_weights(reference), adapter, settled))


def load_tokenizer(
    model: str | PreTrainedModel, args: GroupConfig, *, is_policy: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a model, with the recipe's chat template.

    Args:
        model: The model, or its name.
        args: Settings.
        is_policy: The revision that they name is one of this model.

    Raises:
        UserError: There is none.
    """
    source = model if isinstance(model, str) else model.config.name_or_path
    kwargs: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    if isinstance(model, str):
        kwargs |= _revision(args, is_policy)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        if (Path(source) / "config.json").is_file():
            raise UserError(
                f"`{source}` holds no tokenizer that can be read: save that of the model there"
            ) from None
        raise UserError(not_a_model(source, error)) from None
    if args.chat_template_path is not None:
        path = Path(args.chat_template_path)
        if not path.is_file():
            raise UserError(f"chat_template_path: no such file: {path}")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    return tokenizer


def _revision(args: GroupConfig, is_policy: bool) -> dict[str, str]:
    """What `from_pretrained` is told of the revision; other models than the policy have others."""
    named = cast("dict[str, Any]", args.model_init_kwargs or {}).get("revision")
    return {"revision": named} if is_policy and named is not None else {}


def load_model(
    source: str,
    args: GroupConfig,
    quantization_config: BitsAndBytesConfig | None = None,
    *,
    is_policy: bool = True,
) -> PreTrainedModel:
    """Loads a causal language model by path or Hub id.

    Args:
        source: Its name.
        args: Settings.
        quantization_config: Loads it in 4 or 8 bit.
        is_policy: The revision that the settings name is one of this model.

    Raises:
        UserError: There is no model of that name.
    """
    kwargs = dict(cast("dict[str, Any]", args.model_init_kwargs or {}))
    kwargs.pop("revision", None)
    revision = _revision(args, is_policy)
    kwargs |= revision
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "MULTI_CPU", "DEEPSPEED", "FSDP"):
        kwargs["device_map"] = None
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=args.trust_remote_code, **revision)
        model = create_model_from_path(source, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(not_a_model(source, error)) from None
    except ImportError as error:
        raise UserError(
            f"`{source}` cannot be loaded as the recipe asks: {str(error).splitlines()[0]}"
        ) from None
    if model.get_output_embeddings() is None:
        raise UserError(f"`{source}` is a {type(model).__name__}, which has no language-model head")
    return model


def load_policy(  # noqa: PLR0913 - as many as TRL's trainers take for the same
    model: str | PreTrainedModel,
    args: GroupConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantization_config: BitsAndBytesConfig | None = None,
    peft_config: PeftConfig | None = None,
    keep_start: bool = False,
    with_values: bool = False,
) -> Policy:
    """The policy as training wants it: adapter, precision, dropout, padding token.

    Args:
        model: A model, or its name.
        args: Settings.
        tokenizer: Gets a padding token if it has none.
        quantization_config: Loads the model in 4 or 8 bit.
        peft_config: A fresh adapter to train.
        keep_start: Keeps a copy of a model that was passed in, to be the reference.
        with_values: Trains a head along that gives a value per token.

    Raises:
        UserError: Model and adapter do not fit.
    """
    # peft draws the adapter's weights, so the seed comes first.
    set_seed(args.seed)
    source = model if isinstance(model, str) else None
    policy: Any = load_model(model, args, quantization_config) if isinstance(model, str) else model
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    policy.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    if with_values:
        peft_config = _with_value_head(policy, peft_config)
    start = None
    if keep_start and source is None and peft_config is None and not is_peft_model(policy):
        start = copy.deepcopy(policy)
    if peft_config is not None:
        if is_peft_model(policy):
            raise UserError(
                "the model has an adapter already: pass no `peft_config`, or merge it first"
            )
        policy = _with_adapter(policy, args, peft_config)
    elif is_peft_model(policy):
        freeze_reference_adapter(policy)
    if is_peft_model(policy):
        _check_adapter(policy)
        _prepare_checkpointing(policy, args)
    if args.disable_dropout:
        disable_dropout(policy)
    _keep_gradient_in_four_bits(policy)
    base = policy.get_base_model() if is_peft_model(policy) else policy
    return Policy(model=policy, base=base, source=source, start=start)


def prepare_frozen(model: PreTrainedModel | None, accelerator: Accelerator) -> nn.Module | None:
    """Places a frozen model where and how the engine keeps the policy."""
    if model is None:
        return None
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        return prepare_deepspeed(model, accelerator)
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        return prepare_fsdp(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def disable_dropout(model: nn.Module) -> None:
    """Sets every probability of dropout in a model to 0.

    They stand in modules (`nn.Dropout`), in layers that drop by a function of their own (the
    attention of Llama), and in configurations that layers read as they compute (that of Falcon), so
    that a saved configuration says it too.
    """
    for module in model.modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        config = getattr(module, "config", None)
        for holder in (module, *([config] if isinstance(config, PreTrainedConfig) else [])):
            for name, value in [*vars(holder).items()]:
                if isinstance(value, float) and ("drop" in name or (is_dropout and name == "p")):
                    setattr(holder, name, 0.0)


def freeze_reference_adapter(policy: PeftModel) -> None:
    """Copies the active adapter to a frozen one that keeps the starting point."""
    active = policy.active_adapter
    config = copy.deepcopy(policy.peft_config[active])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # the copy must not move base weights a second time
    policy.add_adapter(REFERENCE_ADAPTER, config)
    for name, parameter in list(policy.named_parameters()):
        if f".{active}." in f"{name}.":
            other = f"{name}.".replace(f".{active}.", f".{REFERENCE_ADAPTER}.")
            copied = policy.get_parameter(other.removesuffix("."))
            copied.data.copy_(parameter.data)
            copied.requires_grad_(False)


def _with_adapter(policy: PreTrainedModel, args: GroupConfig, config: PeftConfig) -> PeftModel:
    from peft import get_peft_model

    quantised = getattr(policy, "is_loaded_in_4bit", False) or getattr(
        policy, "is_loaded_in_8bit", False
    )
    _check_targets(policy, config)
    kwargs: dict[str, Any] = _revision(args, is_policy=True)  # the adapter's file names its base
    if _zero_stage(args) == 3 and not quantised:
        # ZeRO-3 gathers adapters in one buffer and wants them in the precision of the base model.
        kwargs["autocast_adapter_dtype"] = False
    try:
        adapted = get_peft_model(policy, config, **kwargs)
    except ValueError as error:
        raise UserError(
            f"the adapter does not fit the model: {str(error).splitlines()[0]}"
        ) from None
    if quantised and args.bf16:
        for name, parameter in adapted.named_parameters():
            # DoRA's magnitudes move by less than bf16 can show.
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
    kind = getattr(config, "init_lora_weights", True)
    if isinstance(kind, str) and kind.lower().startswith(_BASE_CHANGING):
        logger.info(
            "adapter initialisation `%s` changes the base model: the reference is a frozen copy "
            "of the fresh adapter instead of the adapter switched off",
            kind,
        )
        freeze_reference_adapter(adapted)
    return adapted


def _with_value_head(policy: Any, config: PeftConfig | None) -> PeftConfig | None:
    """Adds the value head; returns the adapter's configuration, which trains and saves it."""
    if is_peft_model(policy):
        if not hasattr(getattr(policy.get_base_model(), VALUE_HEAD, None), "modules_to_save"):
            raise UserError(
                "the adapter was trained without a value head, which this objective trains along: "
                "merge it into the model, and train a fresh one"
            )
        return config
    add_value_head(policy)
    if config is None:
        return None
    config = copy.deepcopy(config)
    config.modules_to_save = [*(config.modules_to_save or []), VALUE_HEAD]
    return config


def _check_targets(policy: PreTrainedModel, config: PeftConfig) -> None:
    """Tells targets that no module has; peft takes a list of which one is found.

    Raises:
        UserError: None of them is found.
    """
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.isidentifier():
        # TRL makes a text of a list of one, and peft reads a text as an expression for whole names.
        targets = config.target_modules = {targets}
    if not targets or targets == "all-linear":
        return
    names = [name for name, _ in policy.named_modules()]
    wanted = [targets] if isinstance(targets, str) else sorted(targets)

    def is_there(target: str) -> bool:
        if isinstance(targets, str):
            return any(re.fullmatch(target, name) for name in names)
        return any(name == target or name.endswith(f".{target}") for name in names)

    absent = [target for target in wanted if not is_there(target)]
    if not absent:
        return
    key = "target_modules" if isinstance(config, AdapterConfig) else "lora_target_modules"
    linear = {n.rpartition(".")[2] for n, m in policy.named_modules() if isinstance(m, nn.Linear)}
    told = (
        f"{key}: the model has no module `{'`, `'.join(absent)}`; its linear layers "
        f"are {', '.join(sorted(linear))}; `all-linear` takes all but the head"
    )
    if len(absent) == len(wanted):
        raise UserError(told)
    logger.warning(told)


def _check_adapter(policy: PeftModel) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if policy.active_peft_config.is_prompt_learning:
        raise UserError(
            "an adapter of virtual tokens lies outside the packed prompt, so it would never be "
            "trained: take one that changes layers, such as LoRA"
        )
    base = policy.get_base_model()
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            "the adapter targets the head, whose weight is used directly, so it would never be "
            "trained: take `lm_head` out of `lora_target_modules`"
        )
    tied = getattr(base.config.get_text_config(), "tie_word_embeddings", False)
    if tied and isinstance(base.get_input_embeddings(), BaseTunerLayer):
        raise UserError(
            "the adapter targets the embedding, which is tied to the head, and the head would "
            "not see it: take the embedding out of `lora_target_modules`"
        )
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise UserError(
            "the adapter has no trainable weight: load it with `is_trainable=True`, or mend its "
            "targets"
        )


def _prepare_checkpointing(policy: PeftModel, args: GroupConfig) -> None:
    if not args.activation_checkpointing:
        return
    if _zero_stage(args) == 3:
        kwargs = dict(cast("dict[str, Any]", args.activation_checkpointing_kwargs or {}))
        if kwargs.get("use_reentrant") is False:
            logger.warning("an adapter under ZeRO-3 needs `use_reentrant: true`, which is set")
        set_checkpointing_kwargs(args, {**kwargs, "use_reentrant": True})
    policy.enable_input_require_grads()


def _keep_gradient_in_four_bits(policy: nn.Module) -> None:
    """Keeps bitsandbytes from packing weights for the CPU, which it never undoes in training.

    One pass in eval mode packs them, and the packed product passes no gradient on.
    """
    for module in policy.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _zero_stage(args: GroupConfig) -> int:
    plugin = args.deepspeed_plugin
    return 0 if plugin is None else int(plugin.zero_stage)


def not_a_model(source: str, error: Exception) -> str:
    """One line about a model that could not be read: what its name stands for, and the nearest."""
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        return f"`{source}` is not a model folder: it holds no config.json"
    if Path(source).exists():
        return f"`{source}` is not a model folder: {str(error).splitlines()[0]}"
    parent = Path(source).parent
    if parent.is_dir() and str(parent) != ".":
        near = nearest(Path(source).name, [path.name for path in parent.iterdir()])
        hint = f"; did you mean `{parent / near}`?" if near else ""
        return f"no such model folder: {source}{hint}"
    return (
        f"model `{source}` is neither a folder here nor could it be loaded from the Hub: "
        f"{str(error).splitlines()[0]}"
    )


def _fingerprint_source(source: str, model: PreTrainedModel, memo: Path) -> str | None:
    """The content of a folder, or the commit that a model of the Hub was loaded from, if known."""
    if Path(source).is_dir():
        return fingerprint_files(Path(source), memo)
    commit = getattr(model.config, "_commit_hash", None)
    return None if commit is None else f"{source}@{commit}"


def _fingerprint_weights(model: nn.Module, part: str = "") -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if part in name and (part or not any(own in name for own in _ADAPTER_WEIGHTS)):
            digest.update(f"{name}:{tensor.dtype}".encode())
            with _gathered(tensor):
                values = tensor.detach().cpu().flatten().view(torch.uint8)
                digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _gathered(tensor: Tensor) -> AbstractContextManager[None]:
    """Holds all values of a tensor; ZeRO-3 deals out the weights of a model that it loads."""
    if not hasattr(tensor, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return cast("AbstractContextManager[None]", deepspeed.zero.GatheredParameters([tensor]))
