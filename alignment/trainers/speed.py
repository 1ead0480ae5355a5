"""How fast this machine takes a training step: a few layers and a part of the head, timed.

A matrix product alone says little of a step, in which narrow products, attention, softmax and
element-wise work run far below its speed. So layers of the model's widths, with an adapter of the
recipe's rank, run forward and backward on groups of the recipe's lengths, as training runs them,
and so does the head on a part of the vocabulary; both run as a reference, too, where a step does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.core.logps import token_logps
from alignment.core.packing import PackedBatch, TokenGroup, pack
from alignment.core.scoring import add_scored_forward, policy_logps
from alignment.trainers.footprint import UNCOUNTED

_LAYERS, _VOCABULARY = 2, 128
"""Of the timed model."""

_OPERATIONS = 1e12
"""Of one timed pass, at most, as far as whole groups allow."""

_SECONDS = 2.0
"""For how long a pass is repeated."""


class Speed(NamedTuple):
    """Operations per second.

    Attributes:
        layers: Of layers with their adapters and attention.
        head: Of the head and its log-probs.
    """

    layers: float
    head: float

    def seconds(self, operations: float, head: float) -> float:
        """Time for some operations, `head` of them in the head."""
        return (operations - head) / self.layers + head / self.head


def measured_speed(  # noqa: PLR0913 - everything a speed depends on
    config: Any,
    groups: Sequence[TokenGroup],
    rank: int | None,
    dtype: torch.dtype,
    device: Any,
    *,
    with_reference: bool,
) -> Speed:
    """The speed of this machine for a model of some widths.

    Args:
        config: Of the model to train.
        groups: Of the largest forward pass.
        rank: Of the adapter; None where all weights train.
        dtype: That forward passes compute in.
        device: Where they run.
        with_reference: A step computes its reference.
    """
    text = config.get_text_config()
    model = _model(text, rank, dtype, device)
    layers = sum(weight.numel() for weight in model.parameters())
    batch = _batch(groups, _OPERATIONS / (6 * layers)).to(device)

    def run() -> None:
        if with_reference:
            with torch.no_grad(), nullcontext() if rank is None else model.disable_adapter():
                policy_logps(model, batch)
        policy_logps(model, batch).sum().backward()

    head = _head_speed(text, batch.targets.numel(), dtype, device, with_reference=with_reference)
    return Speed(_count(run) / _usual_time(run), head)


def _model(text: Any, rank: int | None, dtype: torch.dtype, device: Any) -> Any:
    """Llama of a model's widths with a few layers and as good as no head, which trains like it."""
    width = int(text.hidden_size)
    heads = int(text.num_attention_heads)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * width),
        num_hidden_layers=_LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or width // heads),
        max_position_embeddings=1 << 20,
    )
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)
        add_scored_forward(model)
        if rank is None:
            return model.train()
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, adapter).train()


def _batch(groups: Sequence[TokenGroup], tokens: float) -> PackedBatch:
    """As many of the groups as have so many tokens together, at least one, the shortest first."""
    chosen: list[TokenGroup] = []
    total = 0
    for group in sorted(groups, key=lambda group: group.lengths()[0]):
        total += group.lengths()[0]
        if chosen and total > tokens:
            break
        chosen.append(group)
    batch = pack(chosen, "ragged", 0)
    ids, targets = batch.input_ids % _VOCABULARY, batch.targets % _VOCABULARY
    return replace(batch, input_ids=ids, targets=targets)


def _head_speed(
    text: Any, scored: int, dtype: torch.dtype, device: Any, *, with_reference: bool
) -> float:
    rows, width = min(scored, 512), int(text.hidden_size)
    entries = max(256, min(int(text.vocab_size), int(_OPERATIONS / (4 * rows * width))))
    # Scaled as trained ones are: far larger logits make denormal probabilities, which are slow.
    weight = torch.randn(entries, width, dtype=dtype, device=device) / width**0.5
    hidden = torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True)
    targets = torch.randint(entries, (rows,), device=device)

    def run() -> None:
        if with_reference:
            token_logps(hidden.detach(), weight, targets)
        token_logps(hidden, weight, targets)

    return _count(run) / _usual_time(run)


def _count(run: Callable[[], Any]) -> int:
    """Operations of a run."""
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        run()
    return int(counter.get_total_flops())


def _usual_time(run: Callable[[], Any]) -> float:
    """Seconds of a run, by the median of those that fit into some time; at least one does."""
    seconds: list[float] = []
    until = time.perf_counter() + _SECONDS
    while not seconds or time.perf_counter() < until:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
