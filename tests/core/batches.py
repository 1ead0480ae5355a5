"""Groups of random tokens and tiny models with an adapter, for tests of the core."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from alignment.core.packing import TokenGroup
from alignment.core.scoring import add_scored_forward
from tests.tiny import VOCAB_SIZE, tiny_model

FIRST_WORD = 5
"""Token ids below it are special in the tiny tokenizer."""


def token_group(
    rng: random.Random,
    prompt: int,
    responses: Sequence[int],
    contexts: Sequence[int] | None = None,
    **labels: Any,
) -> TokenGroup:
    """A group of random tokens.

    Args:
        rng: Where tokens are drawn from.
        prompt: Tokens of the prompt.
        responses: Tokens of each response.
        contexts: Further tokens of context of each response; none by default.
        **labels: Further fields of `TokenGroup`.
    """
    shared = tokens(rng, prompt)
    own = [tokens(rng, length) for length in contexts or [0] * len(responses)]
    labels.setdefault("role", [0] * len(responses))
    return TokenGroup.of(
        [[*shared, *context] for context in own], [tokens(rng, n) for n in responses], **labels
    )


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(count)]


def ragged_groups(seed: int = 0) -> list[TokenGroup]:
    """One to five responses, most of them and of the prompts longer than the tiny models' window.

    Among them are prompts and responses of one token, and responses with contexts of their own.
    """
    rng = random.Random(seed)
    return [
        token_group(rng, 11, [13]),
        token_group(rng, 19, [12, 3]),
        token_group(rng, 1, [9, 14, 1]),
        token_group(rng, 10, [1, 1, 17, 1]),
        token_group(rng, 14, [2, 21, 9, 1, 5]),
        token_group(rng, 12, [10, 10, 4], contexts=[0, 13, 1]),
        token_group(rng, 1, [1]),
        token_group(rng, 0, [6, 1], contexts=[2, 11]),
    ]


def adapted(family: str = "llama", *, seed: int = 0, **overrides: Any) -> PeftModel:
    """A tiny model without dropout that scores packed batches, with random LoRA weights.

    Args:
        family: One of `tests.tiny.FAMILIES`.
        seed: Seed of model and adapter.
        **overrides: Passed to `tiny_model`.
    """
    if family == "gpt2":
        overrides = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **overrides}
    base = tiny_model(family, seed=seed, **overrides)
    add_scored_forward(base)
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(base, config, autocast_adapter_dtype=False).eval()


def adapter_gradient(model: torch.nn.Module) -> Tensor:
    """The gradients of all trainable weights in one vector; they are cleared."""
    parts = []
    for weight in model.parameters():
        if weight.requires_grad:
            assert weight.grad is not None, "a weight that took no part in the loss"
            parts.append(weight.grad.flatten())
    model.zero_grad()
    return torch.cat(parts)
