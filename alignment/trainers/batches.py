"""Layout and plan of a run, and the plan as data loaders."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, Sampler

from alignment.cli import UserError
from alignment.core.attention import why_not_shared
from alignment.core.packing import Layout, PackedBatch, TokenGroup
from alignment.core.planning import Plan, smallest_accumulation
from alignment.core.reference import Groups
from alignment.trainers.config import GroupConfig

logger = logging.getLogger(__name__)

Collate = Callable[[list[tuple[TokenGroup, bool]]], PackedBatch]


def choose_layout(wanted: str, configs: Sequence[Any]) -> tuple[Layout, str]:
    """The layout that a recipe's wish and the models' configurations allow, and why.

    Raises:
        UserError: The recipe insists on sharing and a model cannot.
    """
    reasons = [(config, why_not_shared(config)) for config in configs]
    config, reason = next((pair for pair in reasons if pair[1]), reasons[0])
    if wanted == "plain":
        return "plain", "the recipe asks for it"
    if reason is None:
        return "shared", "every layer takes a custom mask"
    if wanted == "shared":
        raise UserError(
            f"layout: shared is not possible for `{config.model_type}`, because {reason}; "
            "set `layout: plain` or `layout: auto`"
        )
    return "plain", reason


def plan_run(
    groups: Groups, args: GroupConfig, layout: Layout, world_size: int | None = None
) -> Plan:
    """The plan of a training run, its accumulation chosen where a token budget is set.

    Args:
        groups: The data.
        args: Settings.
        layout: How groups will be packed.
        world_size: Processes; by default those of this run.

    Raises:
        UserError: There is no group, or too few for one batch where incomplete ones are dropped.
    """
    try:
        plan = Plan(
            lengths=groups.lengths(layout),
            batch_size=args.planned_batch_size,
            world_size=world_size or args.world_size,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
            drop_last=args.dataloader_drop_last,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    budget = args.max_tokens_per_batch
    if budget is None:
        return plan
    longest = int(plan.lengths.max())
    if longest > budget:
        logger.warning(
            "max_tokens_per_batch is raised from %d to %d, which the longest group takes",
            budget,
            longest,
        )
    epochs = math.ceil(args.num_train_epochs)
    if args.max_steps > 0:
        epochs = math.ceil(args.max_steps / plan.steps_per_epoch)
    return replace(plan, accumulation=smallest_accumulation(plan, budget, epochs))


def plan_evaluation(groups: Groups, args: GroupConfig, layout: Layout) -> Plan:
    """The plan of one pass over an evaluation set, in the order of the data.

    A forward pass holds the groups of `per_device_eval_batch_size`, or fewer where these take more
    than `max_tokens_per_batch`.
    """
    plan = Plan(
        lengths=groups.lengths(layout),
        batch_size=args.per_device_eval_batch_size * args.world_size,
        world_size=args.world_size,
        accumulation=1,
        seed=0,
        shuffle=False,
    )
    budget = args.max_tokens_per_batch
    if budget is None:
        return plan
    return replace(plan, accumulation=smallest_accumulation(plan, budget, epochs=1))


def plan_loader(groups: Groups, plan: Plan, args: GroupConfig, collate: Collate) -> DataLoader[Any]:
    """The batches of this process, epoch by epoch."""
    loader: DataLoader[Any] = DataLoader(
        _Bins(groups),
        batch_sampler=PlanSampler(plan, args.process_index),
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
    )
    # The plan has dealt the data to the processes already.
    return cast("DataLoader[Any]", prepare_data_loader(loader, num_processes=1, process_index=0))


class PlanSampler(Sampler[list[int]]):
    """The bins of one process, epoch by epoch; fillers stay marked by negative indices."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank, self.epoch = plan, rank, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration walks."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for members in self.plan.bins(self.epoch, self.rank):
            yield list(members)

    def __len__(self) -> int:
        return self.plan.calls_per_epoch


class _Bins(Dataset[tuple[TokenGroup, bool]]):
    """Groups by index, and whether they count; `~index` is a filler."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[TokenGroup, bool]:
        return (self.groups[index], True) if index >= 0 else (self.groups[~index], False)
