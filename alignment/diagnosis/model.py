"""A model and its tokenizer: whether responses can begin, end and be padded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from alignment.cli import UserError
from alignment.core.attention import why_not_shared
from alignment.core.groups import Group, Response, RowError
from alignment.core.rendering import Renderer, drops_system_turn
from alignment.diagnosis.finding import Finding
from alignment.trainers.loading import not_a_model

_CONVERSATION = Group(
    prompt=[{"role": "user", "content": "What is it?"}],
    responses=(Response(content=[{"role": "assistant", "content": "It is that."}]),),
)


def check_model(source: str) -> Iterator[Finding]:
    """Reads configuration and tokenizer; weights are not loaded."""
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        yield Finding("broken", "model", not_a_model(source, error), "mend the name or the folder")
        return
    yield from check_layout(config)
    yield from check_weights(source)
    yield from check_tokens(config, tokenizer)
    if tokenizer.eos_token_id is not None:
        yield from check_template(tokenizer, stops_of(source, config))


def check_layout(config: Any) -> Iterator[Finding]:
    """Whether responses may share their prompt."""
    # What training loads by default, unless the recipe names another.
    config._attn_implementation = "sdpa"
    reason = why_not_shared(config)
    if reason is None:
        yield Finding("ok", "model", f"{config.model_type}; responses share their prompt")
    else:
        yield Finding(
            "warning",
            "model",
            f"{config.model_type}; each response repeats its prompt, for {reason}",
            "nothing to mend; `alignment estimate` says what that costs",
        )


def check_weights(source: str) -> Iterator[Finding]:
    """Whether a folder holds its weights as safetensors."""
    folder = Path(source)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        yield Finding(
            "broken",
            "weights",
            "the folder holds no .safetensors file",
            "save it anew with `save_pretrained`, or copy the weights",
        )


def check_tokens(config: Any, tokenizer: Any) -> Iterator[Finding]:
    """End, padding and size of the vocabulary."""
    if tokenizer.eos_token_id is None:
        yield Finding(
            "broken",
            "end of sequence",
            "the tokenizer has none, so no response could end",
            "set `eos_token` in tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        told = "none; the end of sequence is taken, and padding is never trained on"
        yield Finding("ok", "padding token", told)
    else:
        yield Finding("ok", "padding token", f"{tokenizer.pad_token!r}")
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        yield Finding(
            "broken",
            "vocabulary",
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} rows for them",
            "resize the embedding (`resize_token_embeddings`), or take the model's own tokenizer",
        )


def check_template(tokenizer: Any, stops: frozenset[int]) -> Iterator[Finding]:
    """Whether the chat template keeps the system turn and ends the response where models stop."""
    if tokenizer.chat_template is None:
        yield Finding(
            "warning",
            "chat template",
            "none: conversations cannot be trained on",
            "give data as plain text, or set `chat_template_path`",
        )
        return
    if drops_system_turn(tokenizer):
        yield Finding(
            "warning",
            "chat template",
            "drops the system turn; data that has one is refused",
            "mend the template (`chat_template_path`), or move its text into the user turn",
        )
    try:
        response = Renderer(tokenizer)(_CONVERSATION).group.responses[0]
    except (RowError, UserError) as error:
        yield Finding(
            "broken", "chat template", str(error), "mend the template (`chat_template_path`)"
        )
        return
    last = tokenizer.convert_ids_to_tokens(response[-1])
    if response[-1] in stops:
        yield Finding("ok", "chat template", f"ends a response with {last!r}, where models stop")
    else:
        yield Finding(
            "broken",
            "end of turn",
            f"responses end with {last!r}, at which generation does not stop",
            f"add {response[-1]} to `eos_token_id` in generation_config.json",
        )


def stops_of(source: str, config: Any) -> frozenset[int]:
    """The tokens at which generation stops."""
    try:
        found = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        found = config.get_text_config().eos_token_id
    ids = found if isinstance(found, list) else [found]
    return frozenset(index for index in ids if index is not None)
