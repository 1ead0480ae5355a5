"""Runs policy, reference and teacher over a packed batch and fills `GroupTerms`.

This file and the trainer are the only ones that know that accelerate, peft or deepspeed exist.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from alignment.core.attention import attention_mask
from alignment.core.divergences import (
    HeadInput,
    SpecsOfLogps,
    compare_tokens,
    token_divergences,
)
from alignment.core.logps import HeadTransform, accumulation_dtype, token_logps
from alignment.core.packing import PackedBatch
from alignment.core.ragged import allow_ragged
from alignment.objectives.base import DivergenceSpec, GroupTerms, Objective, Progress

REFERENCE_ADAPTER = "ref"
"""Name of a frozen copy of the policy's adapter as it was before training."""

VALUE_HEAD = "value_head"
"""Name of the module that gives one trainable number per token."""


@dataclass
class ScoredOutput(ModelOutput):
    """What a model returns for a packed batch.

    Attributes:
        logps: (N,) nats, log-prob of each response token.
        token_values: (N,) what the value head reads at the predicting positions; None without one.
        teacher_logps: (N,) nats, those of a teacher that was compared in the same walk over the
            vocabulary, which leaves both without gradient.
        divergences: (N, D) nats, as `Comparison.specs` asks; None without a comparison.
        head: What the logits at the predicting positions are made of, where asked for.
    """

    logps: Tensor | None = None
    token_values: Tensor | None = None
    teacher_logps: Tensor | None = None
    divergences: Tensor | None = None
    head: HeadInput | None = None


@dataclass(frozen=True)
class Comparison:
    """What a policy's forward compares itself with.

    Attributes:
        teacher: The teacher's half.
        specs: The divergences to compute, or a function that gives them from log-probs.
        teacher_logps: (N,) nats, where the gradient of the policy's log-probs is needed, which then
            take a walk over the vocabulary of their own; None leaves all to one walk.
        second: The second teacher's half, for kinds that compare two.
    """

    teacher: HeadInput
    specs: Sequence[DivergenceSpec] | SpecsOfLogps
    teacher_logps: Tensor | None = None
    second: HeadInput | None = None


def add_value_head(model: PreTrainedModel) -> None:
    """Gives a model a head that reads one number per token from its hidden states, 0 at first.

    An adapter trains and saves it under `modules_to_save`; a model without adapter saves it among
    its own weights.
    """
    size = model.config.get_text_config().hidden_size
    head = nn.Linear(size, 1, device=model.device, dtype=model.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.add_module(VALUE_HEAD, head)


def add_scored_forward(model: PreTrainedModel) -> None:
    """Lets `model(packed=batch)` return the log-probs of the batch's response tokens.

    `compare` adds divergences from a teacher; `keep_head` returns what a student compares with, and
    `with_logps=False` that alone.

    The head runs inside the forward that DDP, FSDP and DeepSpeed wrap, and is called as a module,
    so their hooks fire and gather it, in the backward pass as well. Any other call is answered as
    before.

    Args:
        model: A causal language model, without its adapter.
    """
    allow_ragged(model)
    original = model.forward
    transform = HeadTransform.of_config(model.config)

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        packed: PackedBatch | None = None,
        compare: Comparison | None = None,
        keep_head: bool = False,
        with_logps: bool = True,
        **kwargs: Any,
    ) -> Any:
        if packed is None:
            return original(*args, **kwargs)
        hidden = self.base_model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=attention_mask(packed, self.config, self.dtype),
            use_cache=False,
        ).last_hidden_state
        head = active_head(self)

        def score(rows: Tensor) -> ScoredOutput:
            bias = None if head.bias is None else _whole(head.bias)
            own = HeadInput(rows, _whole(head.weight), bias, transform)
            if compare is not None:
                return _compared(own, packed, compare)
            return ScoredOutput(
                logps=token_logps(rows, own.weight, packed.targets, bias, transform)
                if with_logps
                else None,
                head=_kept(own) if keep_head else None,
            )

        rows = hidden.flatten(0, 1).index_select(0, packed.predicts)
        # The head chooses its own precision; autocast would round sums that it keeps in float32.
        with torch.autocast(rows.device.type, enabled=False):
            scored = _call_as(head, score, rows)
        value_head = getattr(self, VALUE_HEAD, None)
        if value_head is not None:
            values = value_head(rows).squeeze(-1)
            scored.token_values = values.to(accumulation_dtype(values.dtype))
        return scored

    # transformers' generation reads the signature of the original.
    model.forward = types.MethodType(forward, model)


def _compared(own: HeadInput, packed: PackedBatch, compare: Comparison) -> ScoredOutput:
    """Log-probs and divergences, in one walk over the vocabulary where that is enough."""
    segments, teacher, specs = packed.response_of_token, compare.teacher, compare.specs
    if compare.teacher_logps is None:
        found = compare_tokens(
            own, teacher, segments, specs, targets=packed.targets, second=compare.second
        )
        return ScoredOutput(**found._asdict())
    logps = token_logps(own.hidden, own.weight, packed.targets, own.bias, own.transform)
    if callable(specs):
        specs = specs(logps, compare.teacher_logps)
    values = token_divergences(own, teacher, segments, specs, second=compare.second)
    return ScoredOutput(logps=logps, teacher_logps=compare.teacher_logps, divergences=values)


@dataclass
class Scorer:
    """Fills `GroupTerms` for an objective.

    Attributes:
        objective: Whose needs decide what is computed.
        ref_model: A frozen reference; None takes the policy with its adapter off (or, where the
            adapter was trained before, with the frozen copy of it).
        unwrap: Strips what the training engine wrapped around the policy.
        teacher: A frozen teacher, where the objective needs one.
        meant_to_differ: The reference is another model than the policy started from.
        reference_is_start: The reference is the policy before its first step, so it must be stored.
        second_ref_model: A second frozen reference, where the objective needs one.
        second_teacher: A second frozen teacher, where the objective needs one.
        steer: Sets the preference of the policy's adapter, for objectives that have one.
    """

    objective: Objective
    ref_model: nn.Module | None
    unwrap: Callable[[nn.Module], nn.Module]
    teacher: nn.Module | None = None
    meant_to_differ: bool = False
    reference_is_start: bool = False
    second_ref_model: nn.Module | None = None
    second_teacher: nn.Module | None = None
    steer: Callable[[Sequence[float]], None] | None = None

    def __call__(
        self,
        model: nn.Module,
        batch: PackedBatch,
        progress: Progress | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> GroupTerms:
        """Scores a batch under the policy and whatever the objective compares it with."""
        progress, state = progress or Progress(), state or {}
        labels = functools.partial(label_terms, batch, progress=progress, state=state)
        preference = self.objective.steering(progress)
        if preference is not None and self.steer is not None:
            self.steer(preference)

        def specs_of(logps: Tensor, teacher_logps: Tensor) -> Sequence[DivergenceSpec]:
            return self.objective.divergences(labels(logps=logps, teacher_logps=teacher_logps))

        ref_logps = second_ref_logps = teacher_logps = compare = None
        if "reference" in self.objective.needs:
            ref_logps = self.reference_logps(model, batch)
        if "second_reference" in self.objective.needs:
            second_ref_logps = self._ask("second_ref_model", batch).logps
        if "teacher" in self.objective.needs:
            known = labels(logps=torch.zeros(batch.targets.shape, device=batch.targets.device))
            use = self.objective.logps_use(known)
            compares = type(self.objective).divergences is not Objective.divergences
            told = self._ask("teacher", batch, with_logps=use == "gradient", keep_head=compares)
            second = None
            if "second_teacher" in self.objective.needs:
                second = self._ask("second_teacher", batch, with_logps=False, keep_head=True).head
            teacher_logps = told.logps
            if told.head is not None:
                compare = Comparison(
                    told.head,
                    self.objective.divergences(known) if use == "logged" else specs_of,
                    teacher_logps,
                    second,
                )
        scored = model(packed=batch, compare=compare)
        return labels(
            logps=scored.logps,
            ref_logps=ref_logps,
            second_ref_logps=second_ref_logps,
            teacher_logps=teacher_logps if compare is None else scored.teacher_logps,
            values=scored.token_values,
            divergences=scored.divergences,
        )

    def counts(
        self,
        batch: PackedBatch,
        progress: Progress | None = None,
        state: Mapping[str, Tensor] | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """(T,) float64, what each loss term of a batch counts.

        Counts come from labels alone, so log-probs and divergences of zero serve to read them and
        no model is run, unless the objective's counts read the policy.

        Args:
            batch: The labels.
            progress: Where training stands.
            state: Of the objective.
            model: The policy, for objectives whose counts read it.
        """
        if self.objective.counts_read_policy and model is not None:
            with torch.no_grad(), evaluating(model):
                counts = self.objective(self(model, batch, progress, state)).counts()
            return counts if batch.real else torch.zeros_like(counts)
        zeros = torch.zeros(batch.targets.shape, device=batch.targets.device)
        given: dict[str, Any] = {
            **dict.fromkeys(("ref_logps", "second_ref_logps", "teacher_logps", "values"), zeros),
            "progress": progress or Progress(),
        }
        with torch.no_grad():
            terms = label_terms(batch, logps=zeros, state=state or {}, **given)
            columns = len(self.objective.divergences(terms))
            if columns:
                terms = replace(terms, divergences=zeros[:, None].expand(-1, columns))
            counts = self.objective(terms).counts()
        return counts if batch.real else torch.zeros_like(counts)

    def _ask(self, name: str, batch: PackedBatch, **wanted: bool) -> ScoredOutput:
        """What a frozen model says of a batch."""
        frozen: nn.Module | None = getattr(self, name)
        if frozen is None:
            raise ValueError(lacks_model(self.objective, name))
        with torch.no_grad(), evaluating(frozen):
            output: ScoredOutput = frozen(packed=batch, **wanted)
        return output

    def reference_logps(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """(N,) log-probs under the reference, detached.

        Stored values come first, then the frozen model, then the policy without its adapter.

        Raises:
            ValueError: There is no reference: the policy has no adapter and no frozen model was
                given.
        """
        if batch.ref_logps is not None:
            return batch.ref_logps
        source = model if self.ref_model is None else self.ref_model
        untrained = nullcontext() if self.ref_model is not None else self._untrained(model)
        with torch.no_grad(), evaluating(source), untrained:
            return policy_logps(source, batch)

    @contextmanager
    def _untrained(self, model: nn.Module) -> Iterator[None]:
        from peft import PeftModel

        policy = self.unwrap(model)
        if not isinstance(policy, PeftModel):
            raise ValueError(
                f"{type(self.objective).__name__} needs a reference: pass `ref_model`, set "
                "`precompute_ref_log_probs: true` or train an adapter (`use_peft: true`)"
            )
        if REFERENCE_ADAPTER not in policy.peft_config:
            with policy.disable_adapter():
                yield
            return
        trained = policy.active_adapter
        policy.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            policy.set_adapter(trained)


def model_key(name: str) -> str:
    """The key of a recipe that names one of the frozen models."""
    return f"{name.removesuffix('_model')}_model_name_or_path"


def lacks_model(objective: Objective, name: str) -> str:
    """One line about a frozen model that an objective needs and nobody named."""
    words = name.removesuffix("_model").replace("_", " ").replace("ref", "reference")
    return f"{type(objective).__name__} needs a {words}: set `{model_key(name)}`"


def policy_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """(N,) log-probs of the response tokens; `add_scored_forward` has prepared the model."""
    logps: Tensor = model(packed=batch).logps
    return logps


def label_terms(batch: PackedBatch, **values: Any) -> GroupTerms:
    """`GroupTerms` with the labels of a batch.

    Args:
        batch: The labels and the assignment of tokens to responses.
        **values: The other fields of `GroupTerms`, `logps` among them.
    """
    return GroupTerms(
        response_of_token=batch.response_of_token,
        group_of_response=batch.group_of_response,
        role=batch.role,
        reward=batch.reward,
        weight=batch.weight,
        aspects=batch.aspects,
        twin=batch.twin,
        mark=batch.mark,
        score=batch.score,
        **values,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while: no dropout, and no checkpointing where nothing flows back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.compiler.disable  # the head is walked in as many parts as there are tokens
def _call_as(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function` as though it were the module's forward, so that its hooks fire."""
    original = module.__dict__.get("forward")
    module.forward = function
    try:
        return module(*args)
    finally:
        if original is None:
            del module.__dict__["forward"]
        else:
            module.forward = original


def active_head(model: PreTrainedModel) -> Any:
    """The output embedding; of several copies that peft keeps, the one in use."""
    head: Any = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):
        in_use = not head.disable_adapters and head.active_adapters
        return head.modules_to_save[head.active_adapters[0]] if in_use else head.original_module
    return head


def _kept(head: HeadInput) -> HeadInput:
    """A head that outlives the forward pass; ZeRO-3 takes the weight of a module back after it."""
    weight = head.weight.detach()
    gathered = hasattr(head.weight, "ds_id")
    return replace(head, weight=weight.clone() if gathered else weight)


def _whole(parameter: Tensor) -> Tensor:
    """FSDP2 shards parameters as DTensors; the head is used whole."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
