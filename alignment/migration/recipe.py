"""A recipe from a foreign configuration."""

from __future__ import annotations

from collections.abc import Collection

from alignment.cli import UserError
from alignment.migration.data import move_data
from alignment.migration.draft import Draft
from alignment.migration.keys import move
from alignment.migration.methods import METHODS, Method, choose_trainer
from alignment.migration.source import Source

_HANDBOOK = ("dataset_mixer", "dataset_mixture", "preprocessing_num_workers")
"""Keys of alignment-handbook, whose layout SimPO, CPO_SIMPO and distillm-2 share."""

_SHARED = ("per_device_train_batch_size", "gradient_accumulation_steps")


def migrate(
    source: Source,
    known: Collection[str],
    *,
    trainer: str | None = None,
    objective: str | None = None,
    processes: int | None = None,
) -> Draft:
    """Turns a configuration into a recipe.

    Args:
        source: What was read.
        known: The keys of a recipe.
        trainer: What the configuration is for; by default what the command says, or the keys.
        objective: Takes the place of the configuration's loss.
        processes: How many processes it was for; by default what the command says.

    Returns:
        The recipe with what is said of it; every key of the source is told of.

    Raises:
        UserError: The trainer or its loss has no counterpart.
    """
    if not source.keys:
        raise UserError(f"{source.name} holds no key")
    named = trainer or source.trainer
    chosen = named or choose_trainer(source.keys)
    if chosen not in METHODS:
        raise UserError(
            f"the {chosen} trainer has no counterpart here; configurations of {', '.join(METHODS)} "
            "are understood, and `--trainer NAME --objective NAME` reads another as one of them"
        )
    draft = Draft(dict(source.keys))
    if "model_name_or_path" in draft.left:
        draft.pass_on("model_name_or_path")
    is_handbook = chosen in ("simpo", "distillm") or any(k in source.keys for k in _HANDBOOK)
    if is_handbook:
        draft.remarks += [
            "The handbook puts an empty system message before prompts that have none, where the",
            "template knows such messages; here prompts are rendered as they are.",
        ]
    move_data(draft)
    _put_method(draft, chosen, named is None, objective)
    _put_batch(draft, source.processes if processes is None else processes)
    _put_defaults(draft, chosen, is_handbook)
    move(draft, known)
    return draft


def _put_method(draft: Draft, trainer: str, guessed: bool, wanted: str | None) -> None:
    before = dict(draft.left)
    remark = "" if "loss_type" not in before else f", `loss_type` {before['loss_type']}"
    remark = f"The {trainer} trainer{remark}."
    if guessed:
        remark += " `--trainer` reads it as of another."
    if wanted is None:
        method = METHODS[trainer](draft)
    else:
        draft.take("loss_type")
        method = Method(wanted, {}, "The objective was named by `--objective`.")
        for key in ("beta", "loss_weights"):
            if key in draft.left:
                draft.lose(key, f"give {wanted} its own `objective_kwargs`")
    draft.put("objective", method.objective, remark, method.remark)
    if method.kwargs:
        used = [key for key in before if key not in draft.left and key != "loss_type"]
        given = ", ".join(f"`{key}`" for key in used if key != "ref_model_name_or_path")
        draft.put("objective_kwargs", dict(method.kwargs), f"From {given}." if given else "")


def _put_batch(draft: Draft, processes: int | None) -> None:
    """The batch, counted over all processes where it is known how many there were."""
    if not set(_SHARED) & set(draft.left):
        return
    each, passes = (draft.take_count(*pair) for pair in zip(_SHARED, (8, 1), strict=True))
    if processes is None:
        told = f"{each} x {passes} x processes is the batch, as there. `--processes N` states it."
        draft.put("per_device_train_batch_size", each, told)
    else:
        told = (
            f"per_device_train_batch_size {each} x gradient_accumulation_steps {passes} x "
            f"{processes} processes; it stays so on other machines. `max_tokens_per_batch` would "
            "choose the accumulation by what a GPU holds."
        )
        draft.put("global_batch_size", each * passes * processes, told)
    draft.put("gradient_accumulation_steps", passes)


def _put_defaults(draft: Draft, trainer: str, is_handbook: bool) -> None:
    """Values that the source leaves to its own defaults, where ours are others."""
    rate = 5e-5 if is_handbook else 2e-5 if trainer == "sft" else None
    if rate is not None and "learning_rate" not in draft.left:
        draft.put("learning_rate", rate, f"The default there is {rate}; here it is 1e-6.")
    if is_handbook and trainer != "sft" and "max_length" not in draft.left:
        draft.put("max_length", 512, "The default there is 512; here it is 1024.")
    if "truncation_mode" not in draft.left:
        was_old = is_handbook or "max_prompt_length" in draft.left
        cut = "keep_end" if was_old and trainer != "sft" else "keep_start"
        told = f"The default there is `{cut}`; here it is `drop`, which rejects longer rows."
        draft.put("truncation_mode", cut, told)
