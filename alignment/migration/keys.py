"""What becomes of the keys that say nothing of the loss."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from alignment.cli import nearest
from alignment.migration.draft import Draft

RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "no_cuda": "use_cpu",
    "hub_model_revision": "hub_revision",
    "warmup_ratio": "warmup_steps",
}
"""Other names of what transformers and TRL call otherwise today; a share of warm-up steps is a
fractional `warmup_steps`."""

UNNEEDED = {
    "overwrite_output_dir": "transformers has dropped it; a run says when it starts over another",
    "save_safetensors": "weights are always safetensors",
    "preprocessing_num_workers": "rows are prepared once and kept",
    "dataset_num_proc": "rows are prepared once and kept",
    "remove_unused_columns": "columns are read by name",
    "label_pad_token_id": "nothing is padded here",
    "padding_value": "nothing is padded here",
    "padding_free": "nothing is padded here",
    "pad_to_multiple_of": "nothing is padded here",
    "pad_token": "nothing is padded here",
    "use_liger_kernel": "logits are never built here",
    "precompute_ref_batch_size": "stored references are computed in batches of their own",
    "group_by_length": "each pass is dealt groups of balanced cost",
    "length_column_name": "each pass is dealt groups of balanced cost",
    "packing_strategy": "nothing is padded here",
    "eval_packing": "nothing is padded here",
    "packing": "groups stand in one row, and none sees another",
    "use_flash_attention_2": "attention works span by span through SDPA, without padding",
    "include_num_input_tokens_seen": "tokens are counted anyway, as `num_tokens`",
    "auto_find_batch_size": "`max_tokens_per_batch` bounds a pass, and is halved where memory ends",
    "train_sampling_strategy": "each pass is dealt groups of balanced cost",
    "force_use_ref_model": "a reference is loaded where the objective needs one",
}
"""Keys without effect on what is learnt, and why they can go."""

LOST = {
    "max_prompt_length": "`max_length` bounds prompt and response together",
    "max_completion_length": "`max_length` bounds prompt and response together",
    "max_target_length": "it is for encoder-decoder models",
    "label_smoothing": "this objective has none; in TRL 1.16 it acts in `robust` and `exo_pair`",
    "label_smoothing_factor": "`objective_kwargs` smooth labels where the objective does",
    "ld_alpha": "the loss differs: long responses are not weighed down",
    "f_divergence_type": "the loss differs where it is not reverse_kl, which is that of DPO",
    "f_alpha_divergence_coef": "see `f_divergence_type`",
    "use_weighting": "the loss differs where it is true: pairs are not weighed",
    "discopop_tau": "there is no DiscoPOP",
    "reference_free": "the loss differs where it is true; `cpo` and `simpo` need no reference",
    "rpo_alpha": "the loss differs: no likelihood is added; `cpo` has such a term",
    "router_aux_loss_coef": "no loss of a router is added",
    "sync_ref_model": "the reference stays where training starts",
    "ref_model_mixup_alpha": "the reference stays where training starts",
    "ref_model_sync_steps": "the reference stays where training starts",
    "generate_during_eval": "`probe_steps` answers prompts while training",
    "logging_dir": "transformers reads TENSORBOARD_LOGGING_DIR instead",
    "tokenizer_name_or_path": "the tokenizer is the model's own: save it into the model's folder",
    "base_model_revision": "merge the adapter first, or name its base and `adapter_name_or_path`",
    "model_code_revision": "name a commit by `model_revision`",
    "truncation_side": "`truncation_mode` says which end is cut",
    "dataset_kwargs": "rows are read as docs/data_format.md says",
    "dataset_text_field": "a row of one text has no response to train on",
    "eos_token": "the chat template ends a turn",
    "shuffle_dataset": "every epoch is shuffled under `seed`",
    "assistant_only_loss": "the last turn alone is trained on",
    "gradual_beta": "`curriculum: release` in `objective_kwargs` is what it was meant to do",
    "generate_kwargs": "training does not generate",
    "model_adapter_name": "an adapter to continue is `adapter_name_or_path`",
    "ref_adapter_name": "the reference of a continued adapter is its start",
}
"""Keys without a counterpart, and the remedy."""

_OFF = {
    **dict.fromkeys(("label_smoothing", "label_smoothing_factor", "router_aux_loss_coef"), 0.0),
    **dict.fromkeys(("use_weighting", "reference_free", "sync_ref_model", "gradual_beta"), False),
    **dict.fromkeys(("generate_during_eval", "assistant_only_loss"), False),
    "f_divergence_type": "reverse_kl",
    "ld_alpha": 1.0,
}
"""The value with which such a key does nothing."""


def move(draft: Draft, known: Collection[str]) -> None:
    """Deals with every key that is left.

    Args:
        draft: Its keys are put, skipped or lost.
        known: The keys of a recipe.
    """
    _precision(draft)
    _attention(draft)
    _template(draft)
    _encoder(draft)
    _order(draft)
    _warmup(draft)
    for key in list(draft.left):
        value = draft.left[key]
        new = RENAMED.get(key)
        if new is not None and (new in draft.left or new in draft.recipe):
            draft.lose(key, f"`{new}` is set beside it")
        elif new is not None:
            draft.pass_on(key, new)
        elif key in UNNEEDED:
            draft.skip(key, UNNEEDED[key])
        elif key in LOST and (value is None or (key in _OFF and value == _OFF[key])):
            draft.skip(key, "it is off")
        elif key in LOST:
            draft.lose(key, LOST[key])
        elif key in known:
            draft.pass_on(key)
        else:
            near = nearest(key, known)
            draft.lose(key, f"no key of a recipe; near it is `{near}`" if near else "unknown")


def _precision(draft: Draft) -> None:
    if draft.left.get("bf16") is True:
        draft.skip("bf16", "it is on by itself where the GPU has it")
    if "torch_dtype" in draft.left and draft.left["torch_dtype"] is None:
        draft.skip("torch_dtype", "null was float32 in transformers 4, which is the default here")


def _attention(draft: Draft) -> None:
    if "flash" in str(draft.left.get("attn_implementation") or ""):
        draft.skip("attn_implementation", UNNEEDED["use_flash_attention_2"])


def _template(draft: Draft) -> None:
    template = draft.left.get("chat_template")
    if template is None:
        if "chat_template" in draft.left:
            draft.skip("chat_template", "the tokenizer has its own")
    elif str(template).endswith(".jinja"):
        draft.pass_on("chat_template", "chat_template_path")
    else:
        draft.lose("chat_template", "save it as a .jinja file and name that by chat_template_path")


def _encoder(draft: Draft) -> None:
    if draft.left.get("is_encoder_decoder"):
        draft.lose("is_encoder_decoder", "models are decoders here")
    elif "is_encoder_decoder" in draft.left:
        draft.skip("is_encoder_decoder", "models are decoders here")


def _order(draft: Draft) -> None:
    strategy: Any = draft.left.get("train_sampling_strategy")
    if strategy == "sequential":
        draft.lose("train_sampling_strategy", "every epoch is shuffled under `seed`")
    elif "train_sampling_strategy" in draft.left:
        draft.skip("train_sampling_strategy", UNNEEDED["group_by_length"])


def _warmup(draft: Draft) -> None:
    """A share of the steps counts where their number is 0, as in transformers 4."""
    if draft.left.get("warmup_ratio") and not draft.left.get("warmup_steps", 1):
        draft.skip("warmup_steps", "it is off, and `warmup_ratio` counts")
