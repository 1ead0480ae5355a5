"""Out of memory: a smaller token budget on one process, an early end on several.

On one process a step that does not fit is computed anew in smaller parts. What it learns is the
same, because a loss is divided by counts that are known before the first forward pass. Several
processes compute in step, and one that fails leaves the others waiting; so the largest bin of the
plan is tried before the first step.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignment.cli import UserError
from alignment.core.packing import Layout, PackedBatch, TokenGroup
from alignment.core.planning import deal, largest_bin

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

logger = logging.getLogger(__name__)

Compute = Callable[[nn.Module, PackedBatch, Any], Tensor]
"""Forward and backward pass of a batch; returns its loss, detached."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that a device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class SplittingStep:
    """Forward and backward passes of one process that fit into its memory."""

    def __init__(self, trainer: GroupTrainer, compute: Compute) -> None:
        self._trainer, self._compute = trainer, compute
        self._batches: list[PackedBatch] = []
        self._before = trainer.counted()

    def __call__(self, model: nn.Module, batch: PackedBatch, counts: Any) -> Tensor:
        """Computes a batch, in parts where it exceeds the budget.

        Args:
            model: The policy.
            batch: The next batch of the optimiser step.
            counts: Global counts of the loss terms.

        Returns:
            () the loss of the batch.

        Raises:
            UserError: A group alone does not fit.
        """
        if not self._batches:
            self._before = self._trainer.counted()
        self._batches.append(batch)
        failed = False
        while True:
            try:
                if failed:
                    loss = self._anew(model, counts)
                else:
                    loss = self._in_parts(model, batch, len(self._batches) - 1, counts)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            # Outside of the handler, whose traceback holds the activations.
            self._halve(len(self._batches) - 1)
        if self._trainer.accelerator.sync_gradients:
            self._batches = []
        return loss

    def _anew(self, model: nn.Module, counts: Any) -> Tensor:
        """The batches of this step once more: a backward pass may have failed half way."""
        model.zero_grad()
        self._trainer.count_from(self._before)
        losses = [
            self._in_parts(model, batch, index, counts) for index, batch in enumerate(self._batches)
        ]
        return losses[-1]

    def _in_parts(self, model: nn.Module, batch: PackedBatch, index: int, counts: Any) -> Tensor:
        budget = self._trainer.consumed.token_budget
        if budget is None or batch.num_tokens <= budget:
            return self._compute(model, batch, counts)
        groups = self._groups(batch, index)
        parts = [
            self._trainer.pack(part, real=batch.real)
            for part in split(groups, budget, batch.layout)
        ]
        return torch.stack([self._compute(model, part, counts) for part in parts]).sum()

    def _halve(self, index: int) -> None:
        trainer, batch = self._trainer, self._batches[index]
        budget = trainer.consumed.token_budget
        tokens = batch.num_tokens if budget is None else min(budget, batch.num_tokens)
        groups = self._groups(batch, index)
        if len(split(groups, tokens, batch.layout)) == len(groups):
            longest = max(groups, key=lambda group: group.lengths())
            raise UserError(
                f"out of memory at a single group, {longest.origin} of "
                f"{max(_lengths(groups, batch.layout))} tokens: lower `max_length`, set "
                "`activation_checkpointing: true` or take a smaller model"
            )
        trainer.consumed.token_budget = tokens // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "step %d: out of memory at %d tokens; the step is taken anew with at most %d in a "
            "pass, its batch stays as it is (`max_tokens_per_batch: %d` begins with that)",
            *(trainer.state.global_step + 1, tokens, tokens // 2, tokens // 2),
        )

    def _groups(self, batch: PackedBatch, index: int) -> list[TokenGroup]:
        """The groups of a batch, which the plan knows.

        Raises:
            UserError: The data were not walked as planned.
        """
        trainer = self._trainer
        members = trainer.plan.step_bins(trainer.state.global_step, rank=0)[index]
        groups = [trainer.train_dataset[i if i >= 0 else ~i] for i in members]
        if tuple(group.origin for group in groups) != batch.origins:
            raise UserError(
                "out of memory, and `ignore_data_skip` keeps the step from being taken anew: set "
                f"`max_tokens_per_batch: {batch.num_tokens // 2}`"
            )
        return groups


def split(groups: list[TokenGroup], budget: int, layout: Layout) -> list[list[TokenGroup]]:
    """The fewest parts of balanced length that keep to a budget; a longer group is one of its own.

    Args:
        groups: Whole groups.
        budget: Positions.
        layout: How they are laid out.
    """
    lengths = _lengths(groups, layout)
    for count in range(1, len(groups)):
        parts = deal(lengths, count)
        if sum(lengths[i] for i in parts[0]) <= budget:
            return [[groups[i] for i in sorted(part)] for part in parts if part]
    return [[group] for group in groups]


def _lengths(groups: Sequence[TokenGroup], layout: Layout) -> list[int]:
    return [group.lengths()[layout == "plain"] for group in groups]


def try_largest_bin(trainer: GroupTrainer) -> None:
    """Runs the largest bin of the plan forward and backward, without learning from it.

    Raises:
        UserError: It does not fit; the remedy is named.
    """
    epochs = math.ceil(trainer.args.num_train_epochs)
    if trainer.args.max_steps > 0:
        epochs = math.ceil(trainer.args.max_steps / trainer.plan.steps_per_epoch)
    members = largest_bin(trainer.plan, epochs)
    # A filler: its loss is zero and so are its gradients, in every buffer of every engine.
    batch = replace(trainer.pack([trainer.train_dataset[i] for i in members]), real=False)
    accelerator, model = trainer.accelerator, trainer.model_wrapped
    accelerator.gradient_state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            trainer.training_step(model, batch)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        tokens = batch.num_tokens
        raise UserError(
            f"process {trainer.args.process_index} has no memory for the largest batch of the plan "
            f"({tokens} tokens in {len(members)} groups): set `max_tokens_per_batch: {tokens // 2}`"
            ", `activation_checkpointing: true` or take an engine that shards more"
        ) from None
    finally:
        accelerator.gradient_state._set_sync_gradients(True)
        model.zero_grad()
