"""`alignment train --dry-run`: everything but the steps, and nothing is saved.

Tokens, steps, memory and time as `alignment estimate` has them, for the processes that `--launcher`
would start; examples of the data as the model sees them; and, in this one process, the checks that
precede the first step.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, TrainerCallback

from alignment import compat, launch
from alignment.cli import UserError, load_yaml, parse, say, split
from alignment.commands import estimate
from alignment.core.packing import TokenGroup
from alignment.data import GroupDataset
from alignment.train import Recipe, build_trainer, check_output, parse_recipe, take_steps
from alignment.trainers.loading import load_tokenizer

_EXAMPLES = 5
_LONGEST = 240
"""Tokens of a part of an example that are shown; what lies between its ends is counted."""

_COLOURS = {"prompt": "36", "context": "33", "response": "32"}
_ROLES = {1: "chosen", -1: "rejected", 0: "response"}


def main(argv: list[str]) -> None:
    """Plan, estimate, examples and preflight.

    Raises:
        UserError: As training itself would.
    """
    compat.ignore_renamed()
    words = [word for word in argv if word.partition("=")[0] not in ("--dry-run", "--dry_run")]
    engine, words = engine_of(words)
    # The checks run in this process alone, which takes one GPU of several.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    recipe = parse_recipe(words)
    _check_output(Path(recipe.training.output_dir))
    say(estimate.report(estimate.estimate(recipe, engine)))
    # Estimating plans for other processes; these settings are for this one.
    recipe = parse_recipe(words)
    with tempfile.TemporaryDirectory() as folder:
        recipe.training.output_dir, recipe.training.report_to = folder, []
        recipe.training.resume_from_checkpoint, recipe.training.disable_tqdm = None, True
        recipe.training.ref_cache_dir = folder
        trainer = build_trainer(recipe, keep_rejects=False)
        say(examples(trainer.train_dataset, _tokenizer(recipe), coloured=_wants_colour()))
        for groups in filter(None, (trainer.train_dataset, trainer.eval_dataset)):
            for line in rejects(groups):
                say(line)
        _check(trainer)
    say("dry run passed: no step was taken and nothing saved")


def _check_output(folder: Path) -> None:
    """Tries to write as training would, and leaves no folder that was not there."""
    is_new = not folder.exists()
    check_output(folder)
    if is_new:
        folder.rmdir()


def engine_of(words: list[str]) -> tuple[estimate.Options, list[str]]:
    """What the estimate is for, by the launcher's options, and the words of the recipe."""
    if not launch.is_wanted(words):
        return estimate.Options(), words
    own, rest = split(launch.Options, words)
    options = parse(launch.Options, own, "alignment train")
    path = launch.configuration(options.launcher)
    config = load_yaml(path)
    kind = str(config.get("distributed_type", "NO"))
    # A run may be planned for GPUs that this machine lacks.
    gpus = options.gpus or launch.gpus_to_use(rest)
    count = launch.processes_of_machine(options, kind, path, gpus) * options.nodes
    return estimate.Options(num_processes=count, zero_stage=_zero_stage(kind, config)), rest


def _zero_stage(kind: str, config: Mapping[str, Any]) -> Any:
    """The stage of ZeRO that a file of accelerate asks for, itself or by a file of DeepSpeed."""
    if kind != "DEEPSPEED":
        return 3 if kind == "FSDP" else 0
    deepspeed = config.get("deepspeed_config") or {}
    file = deepspeed.get("deepspeed_config_file")
    if file is None:
        return deepspeed.get("zero_stage", 2)  # as accelerate has it
    return (load_yaml(file).get("zero_optimization") or {}).get("stage", 0)


def examples(groups: Any, tokenizer: PreTrainedTokenizerBase, *, coloured: bool) -> str:
    """Some groups, spread over the data, as the model sees them."""
    count = min(_EXAMPLES, len(groups))
    chosen = np.linspace(0, len(groups) - 1, count).round().astype(int)
    legend = ", ".join(
        _paint(told, part, coloured)
        for part, told in (
            ("prompt", "prompt: shared by the responses, read once"),
            ("context", "context: read before one response only"),
            ("response", "response: what is trained on"),
        )
    )
    lines = [f"examples ({legend})"]
    for number, index in enumerate(chosen.tolist(), 1):
        lines += ["", *_example(groups[index], f"{number} of {count}", tokenizer, coloured)]
    return "\n".join(lines)


def rejects(groups: GroupDataset) -> Iterator[str]:
    """For each reason how many rows it rejected, and the first of them."""
    reasons = list(groups.rejects["reason"])
    for reason, count in groups.report.rejected.items():
        first = groups.rejects[reasons.index(reason)]
        yield f"rejected: {count} {reason}, the first {first['origin']}: {first['message']}"


def _example(
    group: TokenGroup, number: str, tokenizer: PreTrainedTokenizerBase, coloured: bool
) -> Iterator[str]:
    sizes = " + ".join(str(len(ids)) for ids in group.responses)
    shared = len(group.prefix)
    yield f"example {number}, {group.origin}: {shared} shared tokens, {sizes} of responses"
    yield _part("prompt", "prompt", group.prefix, tokenizer, coloured)
    parts = zip(group.contexts, group.responses, group.role, strict=True)
    for index, (context, response, role) in enumerate(parts):
        reward = "" if group.reward is None else f" (reward {group.reward[index]:g})"
        if context:
            yield _part("context", "context", context, tokenizer, coloured)
        yield _part("response", f"{_ROLES[role]}{reward}", response, tokenizer, coloured)


def _part(part: str, title: str, ids: Any, tokenizer: Any, coloured: bool) -> str:
    ids, cut = list(ids), len(ids) - _LONGEST
    if cut > 0:
        half = _LONGEST // 2
        text = f"{tokenizer.decode(ids[:half])} [{cut} tokens] {tokenizer.decode(ids[-half:])}"
    else:
        text = tokenizer.decode(ids)
    return f"  {title + ':':<10} {_paint(text, part, coloured)}".replace("\n", "\n    ")


def _paint(text: str, part: str, coloured: bool) -> str:
    return f"\x1b[{_COLOURS[part]}m{text}\x1b[0m" if coloured else text


def _wants_colour() -> bool:
    """Colours for a terminal; NO_COLOR and FORCE_COLOR have their usual meaning."""
    if os.environ.get("NO_COLOR"):
        return False
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(recipe.model.model_name_or_path), recipe.training)


class _Ready(Exception):
    """The checks have passed and the first step would follow."""


class _StopBeforeFirstStep(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise _Ready


def _check(trainer: Any) -> None:
    if trainer.args.precompute_ref_log_probs:
        # The checks compute the reference of the few rows that they look at.
        trainer.args.precompute_ref_log_probs = False
        if trainer.scorer.reference_is_start:
            trainer.scorer.ref_model = trainer.model
    trainer.add_callback(_StopBeforeFirstStep())
    try:
        take_steps(trainer)
    except _Ready:
        return
    raise UserError("the recipe has no step to train")
