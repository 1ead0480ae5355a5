"""Turn a configuration of TRL, alignment-handbook, SimPO, CPO_SIMPO or distillm-2 into a recipe.

    alignment migrate FILE [--output recipe.yaml] [--processes N]

FILE is a YAML, or a shell script with the training command. What has another name or another
meaning here is told beside the key, what has no counterpart at the end of the recipe. The recipe is
read as `alignment train` reads it before it is written.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from alignment.cli import UserError, parse, say
from alignment.migration.draft import Draft, listed
from alignment.migration.recipe import migrate
from alignment.migration.source import read_source
from alignment.train import objective_of, parse_recipe, recipe_keys


@dataclass(kw_only=True)
class Options:
    """Options of `alignment migrate`."""

    file: Path = field(metadata={"help": "the configuration, or the script that starts the run"})
    output: Path | None = field(
        default=None, metadata={"help": "where the recipe goes; unset, it is printed"}
    )
    processes: int | None = field(
        default=None, metadata={"help": "GPUs it was for; gives `global_batch_size`"}
    )
    trainer: str | None = field(
        default=None, metadata={"help": "what it is for (dpo, cpo, simpo, kto, sft, distillm)"}
    )
    objective: str | None = field(
        default=None, metadata={"help": "an objective in the place of its loss"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an output that is there"})

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ValueError("`--processes` must be at least 1")


def main(argv: list[str]) -> None:
    """`alignment migrate`.

    Raises:
        UserError: The file cannot be read, its loss has no counterpart, the output is there, or a
            value is one that training would refuse.
    """
    options = parse(Options, argv, "alignment migrate", __doc__, bare="file")
    if options.output is not None and options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} is there; `--overwrite` replaces it")
    source = read_source(options.file)
    draft = migrate(
        source,
        recipe_keys(),
        trainer=options.trainer,
        objective=options.objective,
        processes=options.processes,
    )
    text = draft.text(_head(options))
    _check(text)
    if options.output is None:
        say(text.rstrip())
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    for line in _summary(draft, options.output):
        say(line)


def _head(options: Options) -> list[str]:
    name = options.output or "RECIPE"
    return [
        f"From {options.file.name}, by `alignment migrate`.",
        "",
        f"  alignment train --launcher zero3 --config {name}",
        "",
    ]


def _check(text: str) -> None:
    """Reads the recipe as training does, as if this machine had the GPU that it may ask for.

    Raises:
        UserError: Training would refuse it.
    """
    elsewhere = ("--use_cpu", "true", "--fp16", "false", "--bf16", "false", "--tf32", "false")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            objective_of(parse_recipe(["--config", str(path), *elsewhere]))
        except UserError as error:
            told = str(error).replace(str(path), "the recipe")
            raise UserError(f"training would refuse this recipe: {told}") from None


def _summary(draft: Draft, output: Path) -> list[str]:
    told = [f"{output}: {len(draft.recipe)} keys, objective {draft.recipe['objective']}"]
    if draft.lost:
        told += [f"no counterpart ({len(draft.lost)}):", *listed(draft.lost)]
    if draft.unneeded:
        told += [f"not needed here ({len(draft.unneeded)}):", *listed(draft.unneeded)]
    return told
