"""Options of decoding: what stands in the prompt, and what the model is set against."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignment.cli import check_counts
from alignment.llm.options import CallOptions

_OF_CONTRASTS = (
    *("amateur", "second_system", "second_column", "soft_prompts", "reward_model"),
    "contrast_kwargs",
)


@dataclass(kw_only=True)
class DecodingOptions(CallOptions):
    """What answers are decoded with, beside how they are drawn."""

    system: str | None = field(
        default=None, metadata={"help": "system prompt; before that of a row, where it has one"}
    )
    in_context: Literal["stylistic", "retrieved"] | None = field(
        default=None,
        metadata={"help": "examples before every prompt, for base models: constant, or retrieved"},
    )
    demonstrations: Path | None = field(
        default=None, metadata={"help": "rows with `prompt` and `response` to retrieve from"}
    )
    shots: int = field(default=9, metadata={"help": "retrieved demonstrations for each prompt"})
    retriever: str = field(
        default="bm25", metadata={"help": "bm25, or a folder or hub id of a sentence encoder"}
    )
    contrast: str | None = field(
        default=None,
        metadata={"help": "a file of alignment/contrasts, such as obrien_lewis, or a dotted path"},
    )
    contrast_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "hyper-parameters of the contrast"}
    )
    amateur: str | None = field(
        default=None, metadata={"help": "model of the second pass; unset, the same model"}
    )
    second_system: str | None = field(
        default=None, metadata={"help": "system prompt of the second pass"}
    )
    second_column: str | None = field(
        default=None, metadata={"help": "column with the prompt of the second pass"}
    )
    soft_prompts: Path | None = field(
        default=None, metadata={"help": "folder of `alignment soft_prompts`, for both passes"}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "sequence classifier that guides the search, for `args`"}
    )
    kl_from: str | None = field(
        default=None,
        metadata={"help": "measure the KL from this model's answers to the plain prompts"},
    )
    report: Path | None = field(
        default=None, metadata={"help": "file for tokens per second, memory and KL, JSON"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _OF_CONTRASTS:
            if self.contrast is None and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is read with `contrast` alone; name a contrast too")
        if (self.in_context == "retrieved") != (self.demonstrations is not None):
            raise ValueError("`in_context: retrieved` and `demonstrations` need each other")
        check_counts(self, "shots")
        for name in ("shots", "retriever"):
            is_set = getattr(self, name) != getattr(type(self), name)
            if is_set and self.in_context != "retrieved":
                raise ValueError(f"`{name}` is read with `in_context: retrieved` alone")
        if self.in_context is not None and self.soft_prompts is not None:
            raise ValueError("`in_context` and `soft_prompts` exclude each other")
        if self.soft_prompts is not None and self.amateur is not None:
            raise ValueError("`soft_prompts` belong to one model; leave `amateur` out")

    @property
    def needs_this_process(self) -> str | None:
        """An option that is set and that no server can serve, None where there is none."""
        names = ("contrast", "kl_from", "report")
        return next((name for name in names if getattr(self, name) is not None), None)
