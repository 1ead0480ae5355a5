"""What happens once the engine has wrapped the model and before the first step.

The layout is checked against the plain one, the stored reference is filled, and the preflight shows
that the policy equals the reference. Every process takes part and all come to the same decision.
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from torch import nn
from tqdm.auto import tqdm

from alignment.cli import UserError
from alignment.core.packing import TokenGroup
from alignment.core.preflight import LOGP_TOLERANCE, Preflight, head_difference, layout_difference
from alignment.core.reference import ReferenceStore, WithReference, missing
from alignment.core.scoring import evaluating, policy_logps
from alignment.data import default_reference_folder
from alignment.trainers.checkpoints import remove_leftovers
from alignment.trainers.out_of_memory import try_largest_bin
from alignment.trainers.watching import not_finite

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer
    from alignment.trainers.config import GroupConfig

logger = logging.getLogger(__name__)

_COMPARED = 64
"""About how many groups are compared over processes id by id."""

_ENTRIES_PER_WRITE = 32
"""Rows of stored reference that a crash may cost each process."""


def prepare_start(trainer: GroupTrainer) -> None:
    """Checks data, weights and layout, fills the stored reference and runs the preflight.

    Raises:
        UserError: Something is inconsistent; training must not start.
    """
    args = trainer.args
    if trainer.is_world_process_zero():
        remove_leftovers(Path(args.output_dir))
    check_can_save(trainer)
    check_same_data(trainer)
    check_weights(trainer)
    with trainer.compute_loss_context_manager():
        check_layout(trainer)
        if args.precompute_ref_log_probs and "reference" in trainer.objective.needs:
            store_reference(trainer)
            trainer.callback_handler.train_dataloader.dataset.groups = trainer.train_dataset
        if args.preflight and trainer.state.global_step == 0:
            run_preflight(trainer)
    if args.world_size > 1:
        try_largest_bin(trainer)


def check_same_data(trainer: GroupTrainer) -> None:
    """Compares the training data of all processes: each computes its share of one plan.

    Raises:
        UserError: They differ; the remedy is named.
    """
    found = gather_object([fingerprint_groups(trainer.train_dataset)])
    other = next((rank for rank, data in enumerate(found) if data != found[0]), None)
    if other is not None:
        raise UserError(
            f"process {other} has other training data ({found[other][0]} groups) than process 0 "
            f"({found[0][0]} groups): put files and the cache of `datasets` (HF_DATASETS_CACHE) "
            "where every node reads the same, or copy them anew"
        )


def check_can_save(trainer: GroupTrainer) -> None:
    """Checks that ZeRO-3 is told to gather a whole model where it is saved.

    Raises:
        UserError: It is not, and would write empty weights.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage < 3 or is_peft_model(trainer.model):
        return
    name = "stage3_gather_16bit_weights_on_model_save"
    if plugin.deepspeed_config["zero_optimization"].get(name) is not True:
        raise UserError(
            "ZeRO-3 would save no weights of this model: set `zero3_save_16bit_model: true` in the "
            f"file of accelerate, or `{name}` in that of DeepSpeed"
        )


def check_weights(trainer: GroupTrainer) -> None:
    """Looks for weights that are no number, in the policy and in frozen models.

    Raises:
        UserError: There is one; it is named.
    """
    for kind, model in {"model": trainer.model, **frozen_models(trainer)}.items():
        weight = not_finite(trainer.unwrap(model))
        name = next(filter(None, gather_object([weight])), None)
        if name is not None:
            raise UserError(
                f"the weight `{name}` of the {kind} holds NaN or infinity, so every loss would: "
                "fetch or save the model anew"
            )


def frozen_models(trainer: GroupTrainer) -> dict[str, nn.Module]:
    """The models of a run beside the policy, as the engine keeps them, by what they are."""
    scorer = trainer.scorer
    models = {
        "reference": scorer.ref_model,
        "second reference": scorer.second_ref_model,
        "teacher": scorer.teacher,
        "second teacher": scorer.second_teacher,
    }
    return {kind: model for kind, model in models.items() if model is not None}


def check_layout(trainer: GroupTrainer) -> None:
    """Compares our log-probs with a model's own logits, and a layout that shares with the plain.

    Policy and frozen models are asked. The first takes a few tokens, the second the longest group
    of the first batch: what lies beyond a window shows in long groups alone. Under `layout: auto` a
    difference between layouts switches to the plain one; one log line says which and why.

    Raises:
        UserError: A model does something of its own to its logits, or the recipe insists on
            sharing and the results differ.
    """
    reason, largest = trainer.layout_reason, 0.0
    longest = max(_first_groups(trainer), key=lambda group: group.lengths()[0])
    pad_token_id = cast(int, trainer.processing_class.pad_token_id)
    for kind, model in {"model": trainer.model_wrapped, **frozen_models(trainer)}.items():
        bound = LOGP_TOLERANCE[_precision(trainer, model)]
        own = _largest(head_difference(model, longest, pad_token_id))
        if own > bound:
            family = trainer.unwrap(model).config.model_type
            raise UserError(
                f"log-probs from the head of `{family}` differ by {own:.3g} nats (bound {bound:g}) "
                "from those of its own logits: the architecture does more to its logits than is "
                "known here"
            )
        if trainer.layout == "plain":
            continue
        found = _largest(layout_difference(model, longest, trainer.layout, pad_token_id))
        largest = max(largest, found)
        if found > bound:
            whose = "" if kind == "model" else f" of the {kind}"
            reason = f"shared and plain layout{whose} differ by {found:.3g} nats (bound {bound:g})"
            if trainer.args.layout == "shared":
                raise UserError(f"layout: shared is wrong here: {reason}; set `layout: plain`")
            reason += "; calls were planned for sharing and may exceed `max_tokens_per_batch`"
            trainer.layout = "plain"
    if trainer.layout != "plain":
        reason += f"; differs from the plain layout by {largest:.1e} nats at most"
    logger.info("layout %s: %s", trainer.layout, reason)


def store_reference(trainer: GroupTrainer) -> None:
    """Computes the reference of every row that has none stored, and reads it from there on.

    Raises:
        UserError: Values are missing, and the policy that would give them has been trained already.
    """
    folder = reference_folder(trainer.args)
    name = [trainer.reference_name]
    broadcast_object_list(name, from_process=0)
    store = ReferenceStore(folder, f"{name[0]}:{trainer.precision}", trainer.layout)

    def stored(groups: Any) -> Any:
        if groups is None:
            return None
        groups = groups.groups if isinstance(groups, WithReference) else groups
        _fill(trainer, groups, store)
        return WithReference(groups, store)

    trainer.train_dataset = stored(trainer.train_dataset)
    if isinstance(trainer.eval_dataset, dict):
        trainer.eval_dataset = {name: stored(g) for name, g in trainer.eval_dataset.items()}
    else:
        trainer.eval_dataset = stored(trainer.eval_dataset)


def reference_folder(args: GroupConfig) -> Path:
    """Where the stored references of a run lie."""
    return Path(args.ref_cache_dir or default_reference_folder())


def run_preflight(trainer: GroupTrainer) -> None:
    """Scores the first batch and stops where policy and reference are inconsistent.

    Raises:
        UserError: They are; the message says how.
    """
    if "reference" not in trainer.objective.needs:
        return
    if trainer.scorer.meant_to_differ:
        logger.info("preflight: skipped, the recipe names another model as reference")
        return
    batch = trainer.pack(_first_groups(trainer)).to(trainer.args.device)
    found = Preflight.of(trainer.scorer, trainer.model_wrapped, batch)
    faults = gather_object([found.fault(trainer.precision)])
    if any(faults):
        raise UserError(f"preflight: {next(filter(None, faults))}")
    expected = "" if found.expected_loss is None else f" (expected {found.expected_loss:.4f})"
    logger.info(
        "preflight passed: largest log-ratio %.1e nats, first loss %.4f%s",
        found.largest_ratio,
        found.loss,
        expected,
    )


def fingerprint_groups(groups: Any) -> tuple[int, str]:
    """Number of groups, and a fingerprint of their lengths and of the ids of some of them."""
    count = len(groups)
    digest = hashlib.sha256(groups.lengths("shared").tobytes())
    for index in range(0, count, max(1, count // _COMPARED)):
        group = groups[index]
        digest.update(repr((list(group.prefix), list(map(list, group.responses)))).encode())
    return count, digest.hexdigest()


def _precision(trainer: GroupTrainer, model: nn.Module) -> torch.dtype:
    """What a model of the run computes in."""
    args = trainer.args
    mixed = args.bf16 or args.fp16
    return trainer.precision if mixed else cast(torch.dtype, trainer.unwrap(model).dtype)


def _largest(difference: float) -> float:
    """Over all processes; what is no number counts as the largest."""
    return float(max(gather_object([math.inf if math.isnan(difference) else difference])))


def _first_groups(trainer: GroupTrainer) -> list[TokenGroup]:
    members = next(trainer.plan.bins(0, trainer.args.process_index))
    return [trainer.train_dataset[index if index >= 0 else ~index] for index in members]


def _fill(trainer: GroupTrainer, groups: Any, store: ReferenceStore) -> None:
    """Computes what some node has not stored, and stores it on all: they may share a disk or not.

    Raises:
        UserError: The policy that would give the values has been trained already, or they do not
            stay where they are written.
    """
    args, model = trainer.args, trainer.model_wrapped
    absent = _absent(trainer, groups, store)
    if trainer.scorer.reference_is_start and absent and trainer.state.global_step > 0:
        raise UserError(
            f"{len(absent)} rows have no stored reference and the policy has moved on since: "
            "start anew, or name the starting model as `ref_model_name_or_path`"
        )
    whole = trainer.scorer.reference_is_start and not is_peft_model(trainer.model)
    score = policy_logps if whole else trainer.scorer.reference_logps
    told = "reference: %d rows are stored in %s, %d are computed now"
    logger.info(told, len(groups) - len(absent), store.path, len(absent))
    calls = math.ceil(len(absent) / args.world_size)
    unsaved: list[tuple[int, Any]] = []
    silent = not (absent and trainer.is_world_process_zero())
    for call in tqdm(range(calls), desc="reference", disable=silent):
        # Engines compute in step, so processes without a row of their own repeat the last one.
        index = absent[min(call * args.world_size + args.process_index, len(absent) - 1)]
        with torch.no_grad(), evaluating(model):
            logps = score(model, trainer.pack([groups[index]]).to(args.device))
        unsaved.append((index, logps.float().cpu().numpy()))
        if len(unsaved) == _ENTRIES_PER_WRITE or call == calls - 1:
            computed = gather_object(unsaved)
            if trainer.is_local_process_zero():
                store.put((groups[index], logps) for index, logps in computed)
            unsaved = []
    if absent and _absent(trainer, [groups[index] for index in absent], store):
        raise UserError(
            f"stored reference {store.path} does not keep what is written to it: name another "
            "`ref_cache_dir`, one that nobody else clears"
        )


def _absent(trainer: GroupTrainer, groups: Any, store: ReferenceStore) -> list[int]:
    """The indices of groups that some node's store lacks, the same list in every process.

    One process of a node looks for all of it: another run may be filling the store meanwhile.
    """
    own = missing(groups, store) if trainer.is_local_process_zero() else []
    return sorted({index for found in gather_object([own]) for index in found})
