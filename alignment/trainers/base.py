"""The trainer: planned batches in, one objective, global counts, metrics out.

It never asks which objective is running. Where data comes from is `alignment.data`, what a forward
pass computes is `alignment.core.scoring`, what the loss is stands in `alignment.objectives`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.base_trainer import _BaseTrainer

from alignment.adapters.base import set_preference
from alignment.cli import UserError
from alignment.core.packing import PackedBatch, TokenGroup, pack
from alignment.core.ragged import without_padding
from alignment.core.scoring import Scorer, add_scored_forward
from alignment.objectives import load_objective
from alignment.objectives.base import Objective, Progress
from alignment.trainers.batches import choose_layout, plan_evaluation, plan_loader, plan_run
from alignment.trainers.callbacks import (
    Consumed,
    MetricsFile,
    ObjectiveState,
    ProgressLines,
    StepHooks,
    TokenProgress,
)
from alignment.trainers.card import write_card
from alignment.trainers.checkpoints import (
    check_origin,
    resolve,
    sketches,
    whole_checkpoint,
)
from alignment.trainers.config import GroupConfig
from alignment.trainers.loading import load_policy, load_tokenizer, prepare_frozen
from alignment.trainers.metrics import MeanLedger, pop_loss, response_metrics, term_means
from alignment.trainers.out_of_memory import SplittingStep
from alignment.trainers.probe import Probe
from alignment.trainers.record import Provenance, RunFile, count
from alignment.trainers.rows import (
    check_ids,
    preparation,
    prepared,
    prepared_splits,
    warn_of_rotations,
)
from alignment.trainers.saved_weights import save_checked
from alignment.trainers.start import prepare_start, reference_folder
from alignment.trainers.teacher import Frozen, check_frozen, check_tokenizer, load_frozen
from alignment.trainers.watching import Watch

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

logger = logging.getLogger(__name__)

_Callback = TypeVar("_Callback", bound=TrainerCallback)


class GroupTrainer(_BaseTrainer):
    """Trains a causal language model on groups of responses with any objective.

    Args:
        model: A model, or the path or Hub id of one.
        args: Settings.
        train_dataset: Rows of any format that `alignment.core.groups.group_from_row` reads, or
            groups that `alignment.data` has prepared.
        eval_dataset: The same, or several by name.
        processing_class: The tokenizer; by default the one that lies with the model.
        ref_model: A frozen reference; by default the policy without its adapter, and without
            adapter a copy of the model as it was loaded.
        teacher_model: A frozen teacher, for objectives that need one.
        second_teacher_model: What the teacher is compared with, for objectives that need it.
        second_ref_model: A second frozen reference, for objectives that need one.
        objective: An objective; by default the one that `args` names.
        quantization_config: Loads the model in 4 or 8 bit.
        peft_config: Trains an adapter instead of the model.
        callbacks: Further callbacks.
        optimizers: Optimiser and scheduler, where they are not to be built from `args`.

    Raises:
        UserError: Data, tokenizer, model and objective do not fit; said before the model is loaded
            wherever that can be known.
    """

    _tag_names: ClassVar[list[str]] = ["contrastive-alignment"]
    _name = "contrastive-alignment"
    # The loss is divided by global counts, which are known before the first forward.
    loss_is_scaled_for_ga = True

    train_dataset: Any
    eval_dataset: Any

    def __init__(  # noqa: PLR0913 - the signature of TRL's trainers
        self,
        model: str | PreTrainedModel,
        args: GroupConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        ref_model: str | PreTrainedModel | None = None,
        teacher_model: str | PreTrainedModel | None = None,
        second_teacher_model: str | PreTrainedModel | None = None,
        second_ref_model: str | PreTrainedModel | None = None,
        objective: Objective | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        kwargs = cast("dict[str, Any]", args.objective_kwargs or {})
        self.objective = objective or load_objective(args.objective, kwargs)
        tokenizer = processing_class or load_tokenizer(model, args)
        wanted = Frozen(teacher_model, second_teacher_model, second_ref_model)
        check_frozen(self.objective, model, wanted, tokenizer, args)
        needs_reference = "reference" in self.objective.needs
        if needs_reference:
            check_tokenizer(ref_model, "reference", tokenizer, args)
        prepare = preparation(self.objective, tokenizer, args)
        train_groups = prepared(prepare, train_dataset, "train")
        eval_groups = prepared_splits(prepare, eval_dataset)

        policy = load_policy(
            model,
            args,
            tokenizer,
            quantization_config=quantization_config,
            peft_config=peft_config,
            keep_start=needs_reference and ref_model is None and not args.precompute_ref_log_probs,
            with_values="values" in self.objective.needs,
        )
        others = load_frozen(self.objective, wanted, args)
        frozen = (
            policy.frozen_reference(ref_model, args, quantization_config)
            if needs_reference
            else None
        )
        self.reference_name = None
        if needs_reference and args.precompute_ref_log_probs:
            memo = reference_folder(args) / "hashes.json"
            self.reference_name = policy.reference_name(ref_model, frozen, memo)
        is_whole = not is_peft_model(policy.model)
        self.sketches = sketches(
            policy.model,
            {"ref_model": None if ref_model is None else frozen, **others},
            start_stays=needs_reference and ref_model is None and is_whole,
        )
        models = [known for known in (policy.base, frozen, *others.values()) if known is not None]
        configs = [known.config for known in models]
        self.layout, self.layout_reason = choose_layout(args.layout, configs)
        splits = eval_groups.values() if isinstance(eval_groups, dict) else [eval_groups]
        smallest = min(configs, key=lambda config: config.get_text_config().vocab_size)
        for groups in filter(None, [train_groups, *splits]):
            check_ids(groups, tokenizer, smallest)
        for config in configs:
            warn_of_rotations(train_groups, config)
        self.plan = plan_run(train_groups, args, self.layout)
        # Engines read the accumulation when they are built.
        args.gradient_accumulation_steps = self.plan.accumulation
        self._means = {"train": MeanLedger(), "eval": MeanLedger()}
        self._statistics = MeanLedger()
        self.tokens_seen = 0
        self._staging: Path | None = None
        self._watch = Watch(self)
        self._splitting = SplittingStep(self, super().training_step)
        self.metrics_file = MetricsFile(Path(args.output_dir) / "metrics.jsonl")
        self.data_report = train_groups.report
        self.provenance = Provenance()

        super().__init__(
            model=policy.model,
            args=args,
            train_dataset=train_groups,
            eval_dataset=eval_groups,
            processing_class=tokenizer,
            callbacks=[ObjectiveState(), Consumed(), *(callbacks or [])],
            optimizers=optimizers,
        )
        if args.n_gpu > 1:
            raise UserError(
                f"{args.n_gpu} GPUs are visible to one process: start with `accelerate launch`, "
                "or show one with CUDA_VISIBLE_DEVICES"
            )
        self._offload = policy.offloading(args)
        self.layout = without_padding(self.layout, models)
        if self.layout == "ragged":
            self.layout_reason += ", and none is padded"
        add_scored_forward(policy.base)
        self.scorer = Scorer(
            objective=self.objective,
            ref_model=prepare_frozen(frozen, self.accelerator),
            unwrap=self.unwrap,
            meant_to_differ=ref_model is not None,
            reference_is_start=frozen is None and (is_whole or bool(policy.trained_beside_adapter)),
            steer=functools.partial(set_preference, policy.model),
            **{name: prepare_frozen(known, self.accelerator) for name, known in others.items()},
        )
        self.model.add_model_tags(self._tag_names)
        self._add_own_callbacks()

    def _send_telemetry(self) -> None:
        """Reports nothing: TRL's base class would tell its makers about the run."""

    def unwrap(self, model: nn.Module) -> Any:
        """A model without what engine and compiler have wrapped around it."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Groups per optimiser step over all processes."""
        return self.plan.batch_size

    def _add_own_callbacks(self) -> None:
        self.add_callback(StepHooks(self))
        self.add_callback(self.metrics_file)
        self.add_callback(RunFile(self))
        if self.args.probe_steps is not None:
            self.add_callback(Probe(self))
        self.pop_callback(PrinterCallback)
        has_bar = self.pop_callback(ProgressCallback) is not None
        self.add_callback(TokenProgress(self) if has_bar else ProgressLines())

    # ---- Batches ----

    def pack(self, groups: list[TokenGroup], *, real: bool = True) -> PackedBatch:
        """Lays out groups as this run does, on the CPU."""
        pad_token_id = cast(int, self.processing_class.pad_token_id)
        return pack(groups, self.layout, pad_token_id, real=real)

    def _collate(self, items: list[tuple[TokenGroup, bool]]) -> PackedBatch:
        return self.pack([group for group, _ in items], real=all(real for _, real in items))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process, epoch by epoch."""
        return plan_loader(self.train_dataset, self.plan, self.args, self._collate)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The batches of this process over an evaluation set, in order."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        groups = self.eval_dataset if eval_dataset is None else eval_dataset
        plan = plan_evaluation(groups, self.args, self.layout)
        return plan_loader(groups, plan, self.args, self._collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[PackedBatch], num_batches: int, device: torch.device
    ) -> tuple[list[PackedBatch], Any]:
        """The batches of one optimiser step, and (T,) the global counts of the loss terms."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not batches:
            return batches, None
        now = (self._progress(), self._state.tensors())
        model = self.model_wrapped if self.objective.counts_read_policy else None
        if model is not None:
            batches = [batch.to(device) for batch in batches]
        with self.compute_loss_context_manager():
            found = [self.scorer.counts(batch, *now, model=model) for batch in batches]
        counts = torch.stack(found).sum(0)
        return batches, self.accelerator.reduce(counts.to(device), reduction="sum")

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Moves a batch; unlike the base class it leaves labels in full precision."""
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Operations of one batch: 6 per parameter and position, forward and backward."""
        return 6 * inputs.num_tokens * self._num_parameters

    @functools.cached_property
    def _num_parameters(self) -> int:
        return count(self.unwrap(self.model).parameters())

    # ---- Resuming ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains.

        Args:
            resume_from_checkpoint: A checkpoint of this run, or `latest` (also True) for its newest
                one that is whole.
            *args: Passed to the base class.
            **kwargs: Passed to the base class.

        Raises:
            UserError: The checkpoint is damaged or belongs to another run; the last good one is
                offered.
        """
        folder = resolve(resume_from_checkpoint, Path(self.args.output_dir))
        if folder is not None:
            check_origin(Path(folder), self)
        return super().train(folder, *args, **kwargs)

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PackedBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """This batch's share of the loss of the optimiser step.

        Args:
            model: The policy as the engine wraps it.
            inputs: A packed batch on the device.
            return_outputs: Also returns the objective's output.
            num_items_in_batch: (T,) global counts; None takes this batch for the whole.
        """
        training = model.training
        with self._offload if training else contextlib.nullcontext():
            progress = self._progress()._replace(evaluating=not training)
            terms = self.scorer(model, inputs, progress, self._state.tensors())
        output = self.objective(terms)
        loss = output.loss(num_items_in_batch)
        if not inputs.real:
            loss = 0.0 * loss
        elif training:
            self._means["train"].add({**output.metrics, **response_metrics(terms)})
            self._statistics.add(output.statistics)
            self.tokens_seen += inputs.num_tokens
        else:
            self._means["eval"].add({**output.metrics, **response_metrics(terms)})
            self._means["eval"].add(term_means(output))
        if training:
            self._watch.loss(inputs, output, loss)
            # Engines average gradients over processes; the counts are global already.
            loss = loss * self.accelerator.num_processes
        else:
            self._last_output = output  # for the names of its terms
        return (loss, output) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: PackedBatch, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Forward and backward pass of a batch; on one process in parts where memory ends."""
        if self.args.world_size > 1 or self.is_deepspeed_enabled:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._splitting(model, inputs, num_items_in_batch)

    def counted(self) -> tuple[MeanLedger, MeanLedger, int]:
        """What has been added up since the last log and step, to come back to."""
        return self._means["train"].copy(), self._statistics.copy(), self.tokens_seen

    def count_from(self, counted: tuple[MeanLedger, MeanLedger, int]) -> None:
        """Comes back to what had been added up, where a step is taken anew."""
        means, statistics, self.tokens_seen = counted
        self._means["train"], self._statistics = means.copy(), statistics.copy()
        self._watch.forget()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._watch.gradient(norm)
        return norm

    @property
    def _state(self) -> ObjectiveState:
        """The objective's state; resuming replaces the callback that holds it."""
        return self._callback(ObjectiveState)

    @property
    def consumed(self) -> Consumed:
        """What the run has used up, likewise."""
        return self._callback(Consumed)

    def _callback(self, kind: type[_Callback]) -> _Callback:
        return next(c for c in self.callback_handler.callbacks if isinstance(c, kind))

    def _progress(self) -> Progress:
        return Progress(
            step=self.state.global_step,
            max_steps=max(self.state.max_steps, 1),
            epoch=float(self.state.epoch or 0.0),
            epochs=float(self.args.num_train_epochs),
        )

    # ---- Hooks around the steps ----

    def before_training(self) -> None:
        """Does all that comes between the engine's wrapping and the first step.

        Raises:
            UserError: Something is inconsistent; training must not start.
        """
        if self.state.global_step:  # one process goes on counting where all together stopped
            self.tokens_seen = self.consumed.tokens if self.is_world_process_zero() else 0
        prepare_start(self)

    def step_ended(self) -> None:
        """Gives the objective the statistics of the whole optimiser step."""
        if type(self.objective).update is Objective.update:
            return
        reduced = self._statistics.reduced(self.accelerator)
        state = self.objective.update(self._state.tensors(), reduced)
        self._state.values = {name: value.tolist() for name, value in state.items()}
        self._statistics.clear()

    @property
    def precision(self) -> torch.dtype:
        """The precision that forward passes compute in."""
        if self.args.bf16:
            return torch.bfloat16
        model = self.unwrap(self.model)
        return torch.float16 if self.args.fp16 else cast(torch.dtype, model.dtype)

    # ---- Evaluation, logging, saving ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Adds one batch to the means of the evaluation; nothing else is kept."""
        with torch.no_grad(), self.compute_loss_context_manager():
            self.compute_loss(model, self._prepare_inputs(inputs))
        return None, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The base loop, and the exact means over the whole evaluation set."""
        self._means["eval"].clear()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._means["eval"].reduced(self.accelerator)
        output.metrics[f"{prefix}_loss"] = pop_loss(means, self._last_output)
        output.metrics.update({f"{prefix}_{n}": float(m.sum / m.count) for n, m in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log."""
        if "loss" in logs:
            means = self._means["train"].reduced(self.accelerator)
            logs.update({name: float(mean.sum / mean.count) for name, mean in means.items()})
            self._means["train"].clear()
            logs["num_tokens"] = self.total_tokens()
        super().log(logs, start_time)

    def total_tokens(self) -> int:
        """Positions computed so far by all processes, which all have to ask."""
        tokens = torch.tensor(self.tokens_seen, device=self.args.device)
        return int(self.accelerator.reduce(tokens, reduction="sum"))

    def _get_output_dir(self, trial: Any = None) -> str:
        """Where checkpoints go; while one is written, the folder it is written below."""
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint that is whole, or leaves everything as it was."""
        folder = Path(self._get_output_dir(trial))
        self.consumed.tokens = self.total_tokens()
        try:
            with whole_checkpoint(self, folder) as self._staging:
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / f"checkpoint-{self.state.global_step}"))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the policy and reads it back; no pickle and no frozen copy is part of it."""
        save_checked(self, super()._save, Path(output_dir or self.args.output_dir), state_dict)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Writes the model card anew, as before a push to the Hub.

        Args:
            model_name: Its title; the name of the output folder by default.
            dataset_name: Taken by the base class; the card names the data that was trained on.
            tags: Further tags.
        """
        if self.is_world_process_zero():
            more = [tags] if isinstance(tags, str) else tags or []
            write_card(self, Path(self.args.output_dir), name=model_name, tags=more)
