"""Generation with a contrast as anyone would write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList

from alignment.contrasts.base import Contrast
from alignment.decoding.passes import Pass
from alignment.decoding.processor import ContrastProcessor
from tests.tiny import EOS_ID, PAD_ID, tiny_tokenizer

PROMPTS = ["the answer", "what the user asked and said in return is the question to", "a"]


def inputs(prompts: Sequence[str] = PROMPTS) -> dict[str, Tensor]:
    """Prompts as ids (B, T) and mask, padded on the left."""
    padded = tiny_tokenizer()(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    return {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask}


def generated(model: Any, given: dict[str, Tensor], second: Any = None, **options: Any) -> Tensor:
    """(B, n) greedy tokens after the prompts, with a processor where one is given."""
    ends = {"eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    processors = LogitsProcessorList([] if second is None else [second])
    made: Tensor = model.generate(
        **given,
        **{"max_new_tokens": 12, "do_sample": False, **ends, **options},
        logits_processor=processors,
    )
    return made[:, given["input_ids"].shape[1] :]


def contrasted(contrast: Contrast, model: Any, given: dict[str, Tensor]) -> ContrastProcessor:
    """A processor that sets a model's pass over the same prompts against the generation."""
    return ContrastProcessor(contrast, Pass(model, **given))
