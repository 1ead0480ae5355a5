"""The settings of `GroupTrainer`, on top of those of transformers and TRL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl.trainer.base_config import _BaseConfig

from alignment.compat import name_checkpointing

_IDLE = {
    "label_smoothing_factor": "the objective smooths labels, where its `objective_kwargs` say so",
    "include_num_input_tokens_seen": "tokens are counted anyway, as `num_tokens`",
    "train_sampling_strategy": "every epoch is shuffled and dealt to passes of balanced cost",
    "auto_find_batch_size": "`max_tokens_per_batch` bounds a pass, and is halved where memory ends",
}
"""Settings of transformers that would change nothing, and what there is instead."""


@dataclass
class GroupConfig(_BaseConfig):
    """Settings of a training run; everything `transformers.TrainingArguments` takes, and these.

    The batch of an optimiser step is counted in groups (a pair is one group). It is
    `per_device_train_batch_size x gradient_accumulation_steps x processes`, as in TRL, unless
    `global_batch_size` fixes it whatever the number of processes.

    Attributes:
        objective: A module of `alignment.objectives`, or the dotted path of a class.
        objective_kwargs: The method's hyper-parameters.
        global_batch_size: Groups per optimiser step over all processes.
        max_tokens_per_batch: Positions one forward pass of one process may compute. The
            accumulation is then the smallest that keeps to it and `gradient_accumulation_steps`
            only counts towards the batch.
        layout: `shared` computes the prompt of a group once, `plain` once per response; `auto`
            shares where the model can and checks itself on the first batch. Logs call it `ragged`
            where rows are not padded either.
        max_length: Longest prompt plus response in tokens; null for no limit.
        truncation_mode: `drop` rejects longer rows, `keep_start` and `keep_end` cut them as in TRL.
        pair_rule: `best_worst` makes pairs of scored groups: best against worst reward, with a
            strict gap.
        as_chat: Renders plain-text prompts and responses as a user's and an assistant's turn.
        precompute_ref_log_probs: Computes the reference of every row once, stores it by content and
            reuses it in every later run that shares the row and the model.
        ref_cache_dir: Where stored references live; by default beside the prepared data, in the
            cache folder of `datasets`.
        preflight: Checks at the first step that the policy equals the reference.
        probe_steps: Answers a few prompts greedily every so many steps, logs how many answers end,
            repeat themselves and how long they are, and says when that gets worse; null for never.
        probe_prompts: How many prompts, the first of the evaluation or else the training data.
        probe_max_new_tokens: Longest answer of the probe.
        disable_dropout: Switches dropout off in policy and reference.
        activation_offloading: Keeps activations in host memory between forward and backward.
        model_init_kwargs: Passed to `from_pretrained` where the model is a name.
        trust_remote_code: Lets code that comes with a model run.
        chat_template_path: A .jinja file that replaces the tokenizer's chat template.
        activation_checkpointing: Recomputes activations in the backward pass; on, as in TRL.
        activation_checkpointing_kwargs: How it does so; passed to torch's checkpointing.
        gradient_checkpointing: The old name of `activation_checkpointing`.
        logging_nan_inf_filter: Hides losses that are no number; off, so that they show.
        learning_rate: Peak learning rate; 1e-6 as in TRL's preference trainers.
    """

    objective: str = field(
        default="apo", metadata={"help": "Module of alignment.objectives, or dotted path."}
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Hyper-parameters of the objective."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Groups per optimiser step over all processes."}
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Positions that one forward pass of one process may compute."},
    )
    layout: str = field(
        default="auto",
        metadata={"help": "How groups are laid out.", "choices": ["auto", "shared", "plain"]},
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest prompt plus response in tokens."}
    )
    truncation_mode: str = field(
        default="drop",
        metadata={
            "help": "What happens to longer rows.",
            "choices": ["drop", "keep_start", "keep_end"],
        },
    )
    pair_rule: str | None = field(
        default=None,
        metadata={"help": "`best_worst` makes pairs of scored groups.", "choices": ["best_worst"]},
    )
    as_chat: bool = field(
        default=False, metadata={"help": "Render plain texts as turns of a conversation."}
    )
    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "Store the reference of every row and reuse it."}
    )
    ref_cache_dir: str | None = field(
        default=None, metadata={"help": "Where stored references live."}
    )
    preflight: bool = field(
        default=True, metadata={"help": "Check at the first step that policy equals reference."}
    )
    probe_steps: int | None = field(
        default=None, metadata={"help": "Answer a few prompts every so many steps."}
    )
    probe_prompts: int = field(default=8, metadata={"help": "Prompts of the probe."})
    probe_max_new_tokens: int = field(
        default=128, metadata={"help": "Longest answer of the probe in tokens."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Switch dropout off in policy and reference."}
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep activations in host memory until the backward."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Passed to `from_pretrained`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let code that comes with a model run."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A .jinja file that replaces the chat template."}
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass; on if unset."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Passed to torch's checkpointing."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "The old name of activation_checkpointing."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are no number from the log."}
    )
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate."})

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *{*_BaseConfig._VALID_DICT_FIELDS, "activation_checkpointing_kwargs"},
        "objective_kwargs",
        "model_init_kwargs",
    ]

    def __post_init__(self) -> None:
        """Completes and checks the values.

        Raises:
            ValueError: A value is out of range; field, value and remedy are named.
        """
        bf16: bool | None = self.bf16  # type: ignore[has-type]
        if bf16 is None and not self.fp16:
            # TRL assumes a GPU; on a CPU full precision is both exact and faster.
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self._check_precision()
        for name, instead in _IDLE.items():
            if getattr(self, name) not in (False, type(self).__dataclass_fields__[name].default):
                raise ValueError(f"{name} is not used here: {instead}; leave it out")
        if self.activation_checkpointing is None and self.gradient_checkpointing is None:
            self.activation_checkpointing = True
        name_checkpointing(self)
        for name in (
            *("global_batch_size", "max_tokens_per_batch", "max_length"),
            *("probe_steps", "probe_prompts", "probe_max_new_tokens"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        choices = {
            "layout": ("auto", "shared", "plain"),
            "truncation_mode": ("drop", "keep_start", "keep_end"),
            "pair_rule": (None, "best_worst"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is `{getattr(self, name)}`; it must be one of {known}")
        super().__post_init__()
        # The batch as the recipe states it, before the plan chooses its own accumulation.
        self.planned_batch_size = self.global_batch_size or (
            self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        )

    def _check_precision(self) -> None:
        """Refuses what only a GPU computes, where there is none or it is not to be used."""
        there = torch.accelerator.is_available()
        if self.fp16 and (self.use_cpu or not there):
            raise ValueError("fp16: true needs a GPU; leave it out on a CPU")
        wanted = [name for name in ("bf16", "tf32") if getattr(self, name)]
        if wanted and not there and not self.use_cpu:
            raise ValueError(
                f"{wanted[0]}: true is for a GPU, and this machine shows none: start where there "
                f"is one, or set `use_cpu: true` and `{wanted[0]}: false` to try the recipe here"
            )
