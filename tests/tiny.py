"""Tiny random models and a tiny tokenizer, built in memory: what tests and benchmarks run on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCAB_SIZE = 320
WINDOW = 8
"""Tokens that a sliding-window layer of these models sees: less than a test's sequence."""

PAD, BOS, EOS, START = "<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_WORDS = "the answer to a question is what the user asked and the assistant said in return\n"

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}
_MIXED_LAYERS: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _SHAPE),
    "qwen2": (Qwen2Config, {**_SHAPE, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {**_SHAPE, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {**_SHAPE, "sliding_window": WINDOW}),
    "smollm3": (SmolLM3Config, {**_SHAPE, "no_rope_layer_interval": 2}),
    "gemma3": (Gemma3TextConfig, {**_SHAPE, **_MIXED_LAYERS, "query_pre_attn_scalar": 8}),
    "gpt_oss": (
        GptOssConfig,
        {**_SHAPE, **_MIXED_LAYERS, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096}),
}

FAMILIES = tuple(_FAMILIES)
"""The model families that both layouts are tested on."""


def tiny_config(family: str = "llama", vocab_size: int = VOCAB_SIZE, **overrides: Any) -> Any:
    """The configuration of a two-layer model.

    Args:
        family: One of `FAMILIES`.
        vocab_size: Rows of the embedding and of the head.
        **overrides: Further fields of the configuration.
    """
    cls, shape = _FAMILIES[family]
    tokens = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    return cls(**{**shape, **tokens, "vocab_size": vocab_size, **overrides})


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """A two-layer model with random weights, in eval mode.

    All weights are drawn, biases, norms and attention sinks too, and large enough for a wrong mask
    or a wrong position to show in the log-probs.

    Args:
        family: One of `FAMILIES`.
        seed: Seed of the weights; the global generator is left as it was.
        vocab_size: Rows of the embedding and of the head.
        dtype: Type of the weights.
        **overrides: Further fields of the configuration.
    """
    config = tiny_config(family, vocab_size, **overrides)
    attention = "eager" if family == "gpt_oss" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn_like(weight) * 0.1
                weight.copy_(noise if weight.dim() > 1 else weight + noise)
    return model.to(dtype).eval()


def tiny_tokenizer(
    texts: Iterable[str] = (), *, vocab_size: int = VOCAB_SIZE, add_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens of ChatML and its chat template.

    Args:
        texts: What the merges are learnt from; a sentence of this file where empty.
        vocab_size: Most tokens it may have, at least 260: special tokens and bytes.
        add_bos: Whether plain text starts with the bos token, as Llama's tokenizers have it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts) or [_WORDS], trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tiny(folder: str | Path, family: str = "llama", **options: Any) -> Path:
    """Saves a tiny model with its tokenizer, as `from_pretrained` reads them.

    Args:
        folder: Where to; created where missing.
        family: One of `FAMILIES`.
        **options: Passed to `tiny_model`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    tiny_model(family, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_reward(folder: str | Path, *, seed: int = 0, num_labels: int = 1) -> Path:
    """Saves a tiny reward model, a sequence classifier, with the same tokenizer.

    Args:
        folder: Where to; created where missing.
        seed: Seed of the weights; the global generator is left as it was.
        num_labels: Outputs; a reward model has one.

    Returns:
        The folder.
    """
    folder = Path(folder)
    config = tiny_config(num_labels=num_labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn_like(weight) * 0.1
                weight.copy_(noise if weight.dim() > 1 else weight + noise)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.tiny", description="Save a tiny random model with its tokenizer."
    )
    parser.add_argument("folder")
    parser.add_argument("family", nargs="?", default="llama", choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--hidden", type=int, default=32, help="width, a multiple of 4")
    parser.add_argument("--vocab", type=int, default=VOCAB_SIZE, help="rows of the embedding")
    parser.add_argument("--reward", action="store_true", help="a reward model instead, a Llama")
    chosen = parser.parse_args()
    if chosen.reward:
        save_tiny_reward(chosen.folder, seed=chosen.seed)
        raise SystemExit
    save_tiny(
        chosen.folder,
        chosen.family,
        seed=chosen.seed,
        vocab_size=chosen.vocab,
        **{"n_embd" if chosen.family == "gpt2" else "hidden_size": chosen.hidden},
    )
