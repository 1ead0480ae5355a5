"""Memory, time and token waste of a training run, before anything is loaded.

    alignment estimate --config RECIPE [--key value ...] [--num_processes N] [--zero_stage 0|1|2|3]
        [--flops F] [--json FILE]

Recipe and overrides are those of `alignment train`. Tokenizer and data are read as training reads
them, so tokens and steps are exact. Of the models only their configurations are read: the largest
forward pass and its backward run on tensors without data, which gives the bytes alive at the
highest moment and the floating-point operations.

Operations of a step are those of its matrix products: 2 for each weight and position forward, 2
for the gradient of the input, 2 for that of the weight where it trains, 2 more where layers are
computed again for the backward pass; 2 for the reference (unless stored) and for the teacher; the
head at the response tokens alone, and twice where it is frozen, for its gradient comes with the
forward pass; 4 for each pair of positions, width and layer of attention forward, 10 backward. They
are counted on the largest pass and taken to grow with the tokens. Time is operations over the speed
that layers and a head of these widths have in training on the device here, which is measured, or
over `--flops`.

Memory is that of one process. ZeRO-1 divides optimiser states, ZeRO-2 gradients too, ZeRO-3 (and
FSDP) weights and frozen models as well, of which one layer at a time is whole; without ZeRO several
processes keep gradients a second time, in buckets. Left out are the runtime itself, buffers of
collectives under ZeRO, and fragmentation.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch

from alignment import compat
from alignment.cli import UserError, parse, split
from alignment.core.packing import Layout, best_row_length, fill_rows, pack
from alignment.core.planning import Plan
from alignment.core.ragged import without_padding
from alignment.data import GroupDataset
from alignment.train import (
    Recipe,
    fresh_adapter,
    frozen_of,
    objective_of,
    parse_recipe,
    prepare_data,
)
from alignment.trainers.batches import choose_layout, plan_run
from alignment.trainers.config import GroupConfig
from alignment.trainers.footprint import Footprint, Models, build_models, trace_step
from alignment.trainers.loading import load_tokenizer
from alignment.trainers.speed import Speed, measured_speed

logger = logging.getLogger("alignment")

_STATES = {"adamw": 2, "adamax": 2, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
"""Numbers that an optimiser keeps for each weight; by the beginning of its name."""

_UNITS = (("h", 3600), ("min", 60), ("s", 1))


@dataclass(kw_only=True)
class Options:
    """Options of `alignment estimate` beside those of `alignment train`."""

    num_processes: int = field(default=1, metadata={"help": "processes to train with"})
    zero_stage: Literal[0, 1, 2, 3] = field(
        default=0, metadata={"help": "DeepSpeed's ZeRO stage; 3 also stands for FSDP"}
    )
    flops: float | None = field(
        default=None, metadata={"help": "operations per second of a process; unset, measured here"}
    )
    json: Path | None = field(default=None, metadata={"help": "file to write the figures to"})

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise ValueError("`num_processes` must be at least 1")
        if self.flops is not None and self.flops <= 0:
            raise ValueError("`flops` must be above 0")


@dataclass(frozen=True)
class Tokens:
    """Positions that one epoch computes.

    Attributes:
        unique: Every prompt once, and every response but its last token.
        padded_rows: One row per response, whole prompt and response, padded to the longest of
            `per_device_train_batch_size` groups.
        plain: The same in bins of this project's plan, without last tokens.
        shared: This project's rows, padding included.
    """

    unique: int
    padded_rows: int
    plain: int
    shared: int


class Rows:
    """Lengths of all groups: of prefixes (G,), and of each response's own tokens."""

    def __init__(self, groups: GroupDataset) -> None:
        prefixes, sizes, own = [], [], []
        columns = groups.table.select_columns(["prefix", "contexts", "responses"])
        for table in columns.with_format("arrow").iter(batch_size=1000):
            prefixes.append(pc.list_value_length(table["prefix"]).to_numpy())
            sizes.append(pc.list_value_length(table["responses"]).to_numpy())
            parts = (pc.list_flatten(table[name]) for name in ("contexts", "responses"))
            own.append(sum(pc.list_value_length(part).to_numpy() for part in parts))
        self.prefix, ends = np.concatenate(prefixes), np.cumsum(np.concatenate(sizes))
        self.own = np.split(np.concatenate(own), ends[:-1])

    def whole(self, members: Sequence[int]) -> np.ndarray:
        """Tokens of every row of some groups, one row per response."""
        return np.concatenate([self.prefix[index] + self.own[index] for index in members])

    def rectangle(self, members: Sequence[int]) -> int:
        """Positions of these rows, padded to the longest."""
        lengths = self.whole(members)
        return int(len(lengths) * lengths.max())


def main(argv: list[str]) -> None:
    """`alignment estimate`."""
    compat.ignore_renamed()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    own, words = split(Options, argv)
    if {"-h", "--help"} & set(words):
        own, words = ["--help"], []
    _refuse_launchers(words)
    options = parse(Options, own, "alignment estimate", __doc__)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    figures = estimate(parse_recipe(words), options)
    print(report(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _refuse_launchers(words: Sequence[str]) -> None:
    """Names the options that stand here for those that start processes."""
    for word in words:
        if word.partition("=")[0] in ("--launcher", "--gpus", "--processes", "--nodes"):
            raise UserError(
                f"unknown option {word.partition('=')[0]}; here processes are counted by "
                "`--num_processes N`, and `--zero_stage 3` stands for ZeRO-3 or FSDP"
            )


def estimate(recipe: Recipe, options: Options) -> dict[str, Any]:
    """All figures: tokens, bytes, operations and seconds.

    Raises:
        UserError: Recipe, data or model cannot be used; as `alignment train` says it.
    """
    args, processes = recipe.training, options.num_processes
    # The batch is counted for the processes to come, not for this one.
    args.planned_batch_size = args.global_batch_size or (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    )
    train, _ = prepare_data(recipe)
    models = _models(recipe)
    named = [models.base, *models.frozen.values()]
    layout, reason = choose_layout(args.layout, [model.config for model in named])
    layout = without_padding(layout, named)
    plan = plan_run(train, args, layout, processes)
    rows = Rows(train)
    tokens = count_tokens(rows, train, args, layout, processes)
    members = largest_bin(plan)
    pad = load_tokenizer(str(recipe.model.model_name_or_path), args).pad_token_id or 0
    batch = pack([train[index] for index in members], layout, pad)
    logger.info("following a step of %d tokens on tensors without data", batch.input_ids.numel())
    found = {
        checkpointing: trace_step(
            _models(recipe),
            objective_of(recipe),
            batch,
            args,
            checkpointing=checkpointing,
            accumulating=plan.accumulation > 1,
        )
        for checkpointing in (False, True)
    }
    chosen = found[bool(args.gradient_checkpointing)]
    memory = memory_of(chosen, args, options)
    other = memory_of(found[not args.gradient_checkpointing], args, options)
    steps = args.max_steps if args.max_steps > 0 else 0
    steps = steps or math.ceil(plan.steps_per_epoch * args.num_train_epochs)
    computed = tokens.plain if layout == "plain" else tokens.shared
    share = computed / plan.steps_per_epoch / processes / batch.input_ids.numel()
    operations, in_head = chosen.operations * share, chosen.head_operations * share
    if options.flops is not None:
        speed = Speed(options.flops, options.flops)
    else:
        groups = [train[index] for index in members]
        rank = recipe.model.lora_r if recipe.model.use_peft else None
        dtype = torch.bfloat16 if args.bf16 else models.base.dtype
        logger.info("timing layers and a head of these widths here; `--flops` saves it")
        speed = measured_speed(
            models.base.config,
            groups,
            rank,
            dtype,
            args.device,
            with_reference="reference" in objective_of(recipe).needs
            and not args.precompute_ref_log_probs,
        )
    seconds = speed.seconds(operations, in_head)
    return {
        "groups": len(train),
        "rejected": dict(train.report.rejected),
        "layout": layout,
        "layout_reason": reason,
        "tokens": asdict(tokens),
        "steps": steps,
        "groups_per_step": min(plan.batch_size, len(train)),
        "passes_per_step": plan.accumulation,
        "largest_pass": batch.input_ids.numel(),
        "processes": processes,
        "zero_stage": options.zero_stage,
        "checkpointing": bool(args.gradient_checkpointing),
        "footprint": asdict(chosen),
        "memory": memory,
        "memory_other_checkpointing": other["total"],
        "operations_per_step": operations,
        "operations_per_second": operations / seconds,
        "seconds_per_step": seconds,
        "seconds": steps * seconds,
    }


def count_tokens(
    rows: Rows, train: GroupDataset, args: GroupConfig, layout: Layout, processes: int
) -> Tokens:
    """Positions of the first epoch, by layout."""
    per_row = args.per_device_train_batch_size
    plan = plan_run(train, args, "shared", processes)
    order = np.concatenate(list(plan.steps(0))).tolist()
    batches = [order[start : start + per_row] for start in range(0, len(order), per_row)]
    padded = sum(map(rows.rectangle, batches))
    plain = 0
    for members in _bins(plan_run(train, args, "plain", processes)):
        plain += len(lengths := rows.whole(members) - 1) * int(lengths.max())
    unique = int(train.lengths("shared")[order].sum())
    shared = sum(
        _positions([int(plan.lengths[i]) for i in members], dense=layout == "shared")
        for members in _bins(plan)
    )
    return Tokens(unique, padded, plain, shared)


def largest_bin(plan: Plan) -> list[int]:
    """The groups of the forward pass with the most positions in the first epoch."""
    return max(_bins(plan), key=lambda members: int(plan.lengths[members].sum()))


def memory_of(found: Footprint, args: GroupConfig, options: Options) -> dict[str, float]:
    """Bytes of one process by what they hold; the total is that of the highest moment."""
    count, stage = options.num_processes, options.zero_stage
    whole = 1 / count if stage == 3 else 1.0
    part = 1 / count if stage else 1.0
    share = 1 / count if stage > 1 else 1.0
    gathered = found.largest if stage == 3 and count > 1 else 0.0
    bucket = 1.0 if count > 1 and not stage else 0.0
    gradients = found.gradients * (share + bucket)
    optimiser = optimiser_bytes(str(getattr(args.optim, "value", args.optim)), found)
    if stage and found.trained < 4 * found.trained_count:
        optimiser += 4 * found.trained_count  # DeepSpeed trains a float32 copy of narrower weights
    fixed = {
        "weights": found.weights * whole,
        "gathered": gathered,
        "reference_and_teacher": found.copies * whole,
        "trained_weights": found.trained * whole,
        "optimiser": optimiser * part,
    }
    moment = found.peak - found.gradients_at_peak + found.gradients_at_peak * share
    moment = max(moment + bucket * found.gradients, gradients)
    return {
        **fixed,
        "gradients": gradients,
        "activations": float(found.kept),
        "head": float(found.head),
        "peak_of_step": moment,
        "total": sum(fixed.values()) + moment,
    }


def optimiser_bytes(name: str, found: Footprint) -> float:
    """Bytes of an optimiser's states; those of Adafactor and SGD are as good as nothing."""
    states = next((n for begin, n in _STATES.items() if begin in name), 0)
    width = found.trained / max(found.trained_count, 1)
    return states * found.trained_count * (1.0 if "8bit" in name else width)


def _positions(lengths: Sequence[int], *, dense: bool) -> int:
    if not dense:
        return sum(lengths)
    rows = fill_rows(lengths, best_row_length(lengths))
    return len(rows) * max(sum(lengths[i] for i in row) for row in rows)


def _bins(plan: Plan) -> list[list[int]]:
    """All forward passes of the first epoch, fillers as what they compute."""
    return [
        [index if index >= 0 else ~index for index in members]
        for rank in range(plan.world_size)
        for members in plan.bins(0, rank)
    ]


def _models(recipe: Recipe) -> Models:
    data = recipe.data
    return build_models(
        recipe.model,
        recipe.training,
        objective_of(recipe),
        fresh=fresh_adapter(recipe),
        adapter=data.adapter_name_or_path,
        reference=data.ref_model_name_or_path,
        others=frozen_of(recipe),
    )


def report(figures: dict[str, Any]) -> str:
    """The figures of `estimate` as lines for a reader."""
    tokens, memory = figures["tokens"], figures["memory"]
    unique, gathered = tokens["unique"], memory["gathered"]
    rejected = sum(figures["rejected"].values())
    on = figures["checkpointing"]
    shared = "  shared layout" + (", if it could" if figures["layout"] == "plain" else "")

    def waste(name: str) -> str:
        return f"{tokens[name]:,} ({tokens[name] / unique:.2f} of unique)"

    def size(value: float) -> str:
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"

    def lasts(seconds: float) -> str:
        unit, length = next(pair for pair in _UNITS if seconds >= 2 * pair[1] or pair[1] == 1)
        return f"{seconds / length:.3g} {unit}"

    rows = {
        "groups": f"{figures['groups']:,} kept, {rejected:,} rejected",
        "tokens of an epoch, unique": f"{unique:,}",
        "  one padded row per response": waste("padded_rows"),
        "  plain layout": waste("plain"),
        shared: waste("shared"),
        "layout": f"{figures['layout']}: {figures['layout_reason']}",
        "optimiser steps": f"{figures['steps']:,} of {figures['groups_per_step']} groups",
        "forward passes of a step": f"{figures['passes_per_step']} per process",
        "tokens of the largest pass": f"{figures['largest_pass']:,}",
        "memory of a process": f"{figures['processes']} processes, "
        f"ZeRO stage {figures['zero_stage']}",
        "  frozen weights": size(memory["weights"]),
        **({"  one layer, gathered": size(gathered)} if gathered else {}),
        "  reference, teacher": size(memory["reference_and_teacher"]),
        "  trained weights": size(memory["trained_weights"]),
        "  optimiser": size(memory["optimiser"]),
        "  a step at its highest moment": size(memory["peak_of_step"]),
        "    activations of the largest pass": size(memory["activations"]),
        "    head and log-probs": size(memory["head"]),
        "    gradients": size(memory["gradients"]),
        "  total": size(memory["total"]),
        f"  total {'without' if on else 'with'} activation checkpointing": size(
            figures["memory_other_checkpointing"]
        ),
        "operations of a step": f"{figures['operations_per_step']:.3g} per process",
        "speed of a process": f"{figures['operations_per_second']:.3g} operations per second",
        "time of a step": lasts(figures["seconds_per_step"]),
        "time of the run": lasts(figures["seconds"]),
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    lines += [
        "Tokens and steps are exact; memory and time are estimates. The parts of a step are not",
        "all there at once. Speed is that of this machine unless `--flops` names another's;",
        "loading, saving and communication come on top.",
    ]
    return "\n".join(lines)
