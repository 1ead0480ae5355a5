"""A training step on tensors without data: what it would hold in memory, and what it would compute.

Model, adapter, scorer and head are those of training. Their weights are fake tensors, so nothing is
loaded, allocated or multiplied; labels and masks of the batch are real. Every tensor that an
operation makes is followed until it is freed, which gives the highest moment of any architecture,
with its transient buffers and those of the chunks of the vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl import ModelConfig, get_peft_config

from alignment.adapters.base import read_settings
from alignment.cli import UserError
from alignment.compat import enable_checkpointing
from alignment.core.packing import PackedBatch
from alignment.core.scoring import Scorer, active_head, add_scored_forward
from alignment.objectives.base import Objective
from alignment.trainers.config import GroupConfig
from alignment.trainers.loading import (
    freeze_reference_adapter,
    load_policy,
    load_tokenizer,
    not_a_model,
)
from alignment.trainers.teacher import Frozen

if TYPE_CHECKING:
    from peft import PeftConfig

_QUANTISED = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a weight of a linear layer in 4 bit, with a scale for 64 of them, and in 8 bit."""


@dataclass(frozen=True)
class Footprint:
    """What a step on one batch holds and computes, in one process.

    Attributes:
        weights: Bytes of what does not train, as it is stored.
        trained: Bytes of what trains.
        trained_count: Numbers that train.
        copies: Bytes of separate reference and teacher models.
        largest: Bytes of the largest layer, embedding or head.
        gradients: Bytes of all gradients.
        kept: Bytes alive when the head begins: what the layers keep for the backward pass.
        head: Bytes at most on top of them while the head runs.
        peak: Bytes of the highest moment, `gradients_at_peak` included, weights not.
        gradients_at_peak: Bytes.
        operations: Floating-point operations of the step.
        head_operations: Those of them in the policy's head, forward passes alone.
    """

    weights: float
    trained: int
    trained_count: int
    copies: float
    largest: float
    gradients: int
    kept: int
    head: int
    peak: int
    gradients_at_peak: int
    operations: int
    head_operations: int


class Trace(TorchDispatchMode):
    """Counts operations, and the bytes of all storages that they make, from making to freeing.

    torch's `FlopCounterMode` lends the formulas alone: its hooks on modules keep what checkpointing
    computes anew until the garbage is collected.

    Attributes:
        operations: Floating-point operations so far.
        live: Bytes now.
        peak: Bytes at most, since the last `restart`.
        gradients: Those of `live` that are gradients of weights.
        gradients_at_peak: Those of `peak`.
    """

    def __init__(self, ignored: list[Tensor]) -> None:
        super().__init__()
        self.operations = self.live = self.peak = self.gradients = self.gradients_at_peak = 0
        self._formulas = FlopCounterMode(display=False, custom_mapping=UNCOUNTED).flop_registry
        self._seen: dict[int, Any] = {
            id(storage): storage for storage in (tensor.untyped_storage() for tensor in ignored)
        }

    def restart(self) -> None:
        """Looks for the peak from here on."""
        self.peak, self.gradients_at_peak = self.live, self.gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor that exists."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        if self.live > self.peak:
            self.restart()


@dataclass
class Models:
    """The models of a run, without weights.

    Attributes:
        policy: With its adapter, if any.
        base: Without it.
        reference: A separate frozen reference, None where there is none.
        frozen: Other frozen models, such as a teacher, by name.
        bits: 4 or 8 where linear layers are quantised, else 0.
    """

    policy: Any
    base: PreTrainedModel
    reference: PreTrainedModel | None
    frozen: Mapping[str, PreTrainedModel]
    bits: int = 0


def trace_step(  # noqa: PLR0913 - everything a step depends on
    models: Models,
    objective: Objective,
    batch: PackedBatch,
    args: GroupConfig,
    *,
    checkpointing: bool,
    accumulating: bool,
) -> Footprint:
    """What one forward and backward pass would take.

    Args:
        models: Without weights; a trace uses them up.
        objective: Whose needs decide which passes there are.
        batch: On the CPU.
        args: Precision and the source of the reference.
        checkpointing: Recomputes activations in the backward pass.
        accumulating: Gradients of an earlier pass are there already.
    """
    policy, mode = models.policy, FakeTensorMode(allow_non_fake_inputs=True)
    extra = [*models.frozen.values()]
    if models.reference is not None:
        extra.insert(0, models.reference)
    for model in (policy, *extra):
        _become_fake(model, mode)
    weights = [*policy.parameters()]
    trained = [weight for weight in weights if weight.requires_grad]
    if checkpointing:
        enable_checkpointing(policy, cast(Any, args.activation_checkpointing_kwargs))
    policy.train()
    scorer = Scorer(objective, models.reference, lambda model: model, **models.frozen)
    if args.precompute_ref_log_probs and "reference" in objective.needs:
        batch = replace(batch, ref_logps=torch.zeros(batch.targets.shape))
    ignored = [t for model in (policy, *extra) for t in (*model.parameters(), *model.buffers())]
    trace = Trace(ignored)
    if accumulating:
        for weight in trained:
            weight.grad = torch.empty_like(weight)
            trace.gradients += weight.nbytes
            trace.add(weight.grad)
    else:
        _watch_gradients(trained, trace)
    head = _HeadWatch(active_head(models.base), trace)
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    with trace:
        with torch.autocast("cpu", dtype, enabled=bool(args.bf16 or args.fp16)):
            terms = scorer(policy, batch)
        if terms.divergences is None or terms.logps.requires_grad:
            loss = terms.logps.sum()
        else:
            loss = terms.divergences.sum()
        highest = (trace.peak, trace.gradients_at_peak)
        trace.restart()
        loss.backward()
        highest = max(highest, (trace.peak, trace.gradients_at_peak))
    first, kept, at_head = head.marks[-3:]
    return Footprint(
        weights=sum(
            _stored(m, n, w, models.bits) for m, n, w in _own(policy) if not w.requires_grad
        ),
        trained=sum(weight.nbytes for weight in trained),
        trained_count=sum(weight.numel() for weight in trained),
        copies=sum(_stored(*own, models.bits) for model in extra for own in _own(model)),
        largest=_largest(policy, models.bits),
        gradients=sum(weight.nbytes for weight in trained),
        kept=kept - (trace.gradients if accumulating else 0),
        head=at_head - kept,
        peak=max(highest[0], first),
        gradients_at_peak=highest[1],
        operations=trace.operations,
        head_operations=head.operations,
    )


def build_models(  # noqa: PLR0913 - everything a run's models depend on
    wanted: ModelConfig,
    args: GroupConfig,
    objective: Objective,
    *,
    fresh: PeftConfig | None = None,
    adapter: str | None = None,
    reference: str | None = None,
    others: Frozen | None = None,
) -> Models:
    """The models of a run on the meta device.

    Args:
        wanted: Model, adapter and quantisation.
        args: Settings.
        objective: Whose needs decide which further models there are.
        fresh: An adapter to train; by default the LoRA that `wanted` describes, if it does.
        adapter: An adapter that was trained before, of which a frozen copy is the reference.
        reference: Path or Hub id of a reference of its own.
        others: Paths or Hub ids of the other frozen models.

    Raises:
        UserError: A model is of unknown type, or model and adapter do not fit.
    """
    source = str(wanted.model_name_or_path)
    config = fresh or get_peft_config(wanted)
    if adapter is not None:
        config = read_settings(adapter)
    with torch.device("meta"):
        policy = load_policy(
            empty_model(source, args),
            args,
            load_tokenizer(source, args),
            peft_config=config,
            with_values="values" in objective.needs,
        )
        if adapter is not None:
            freeze_reference_adapter(policy.model)
        add_scored_forward(policy.base)
        separate = reference or (None if config is not None else source)
        stored = args.precompute_ref_log_probs
        frozen = None
        if "reference" in objective.needs and separate and (reference or not stored):
            frozen = _frozen(separate, args)
        names = (others or Frozen()).read_by(objective)
        read = {name: _frozen(str(given), args) for name, given in names.items()}
    bits = 4 if wanted.load_in_4bit else 8 if wanted.load_in_8bit else 0
    return Models(policy.model, policy.base, frozen, read, bits)


def empty_model(source: str, args: GroupConfig) -> PreTrainedModel:
    """A causal language model by its configuration alone; FlexAttention and others become SDPA.

    Raises:
        UserError: There is no such model, or transformers does not know its type.
    """
    wanted = dict(cast("Mapping[str, Any]", args.model_init_kwargs or {}))
    try:
        config = AutoConfig.from_pretrained(
            source,
            trust_remote_code=args.trust_remote_code,
            **({"revision": wanted["revision"]} if wanted.get("revision") else {}),
        )
        dtype = wanted.get("dtype", "float32")
        if dtype in (None, "auto"):
            dtype = config.dtype or torch.float32
        attention = "eager" if wanted.get("attn_implementation") == "eager" else "sdpa"
        architecture = getattr(transformers, (config.architectures or [""])[0], None)
        build = AutoModelForCausalLM.from_config
        if architecture is not None:
            build = architecture._from_config
        built = build(
            config,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            attn_implementation=attention,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(not_a_model(source, error)) from None
    if built.get_output_embeddings() is None:
        raise UserError(f"`{source}` is a {type(built).__name__}, which has no language-model head")
    return cast(PreTrainedModel, built)


def _frozen(source: str, args: GroupConfig) -> PreTrainedModel:
    model = empty_model(source, args).requires_grad_(False)
    add_scored_forward(model)
    return model


def _become_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake tensors of the CPU in the place of all weights; shared ones stay shared."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = empty
        return made[id(tensor)]

    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = fake(tensor)


class _HeadWatch:
    """What a step holds and computes while the policy's head runs.

    Attributes:
        marks: Bytes for each pass: at most and at the moment before the head, at most within it.
        operations: Floating-point operations.
    """

    def __init__(self, head: nn.Module, trace: Trace) -> None:
        self.marks: list[int] = []
        self.operations = 0
        self._trace = trace
        head.register_forward_pre_hook(self._begin)
        head.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self.operations -= self._trace.operations
        if torch.is_grad_enabled():
            self.marks.extend((self._trace.peak, self._trace.live))
            self._trace.restart()

    def _end(self, *_: Any) -> None:
        self.operations += self._trace.operations
        self.marks.append(self._trace.peak)


def _watch_gradients(trained: list[nn.Parameter], trace: Trace) -> None:
    def arrived(weight: Tensor) -> None:
        trace.gradients += weight.nbytes

    for weight in trained:
        weight.register_post_accumulate_grad_hook(arrived)


def _own(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Every weight once, with the module that holds it."""
    found: dict[int, tuple[nn.Module, str, Tensor]] = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            found.setdefault(id(weight), (module, name, weight))
    return list(found.values())


def _stored(module: nn.Module, name: str, weight: Tensor, bits: int) -> float:
    quantised = bits and isinstance(module, nn.Linear) and weight.dim() == 2
    if quantised and "lora_" not in name and not name.endswith("lm_head"):
        return weight.numel() * _QUANTISED[bits]
    return weight.nbytes


def _largest(model: nn.Module, bits: int) -> float:
    """Bytes of the largest layer or other module outside the layers: what is gathered at once."""
    sizes = [0.0]
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    longest = max(lists, key=lambda one: sum(w.numel() for w in one.parameters()), default=None)
    layers = list(longest or ())
    for layer in layers:
        sizes.append(sum(_stored(*own, bits) for own in _own(layer)))
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    sizes += [_stored(*own, bits) for own in _own(model) if id(own[2]) not in inside]
    return max(sizes)


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[-2] * width


def _attention_backward(_grad: Any, query: Any, key: Any, *rest: Any, **kwargs: Any) -> int:
    return 5 * _attention(query, key) // 2


def _product_in_place(_sum: Any, left: Any, right: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


UNCOUNTED = {
    torch.ops.aten.addmm_: _product_in_place,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operations that torch's counter does not know."""
