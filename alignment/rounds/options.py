"""The options of a loop."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alignment import launch
from alignment.cli import UserError, check_counts, unknown
from alignment.llm.connect import load_dotted
from alignment.rounds.store import here
from alignment.stages import command_module

FIXED = {
    "generate": (
        *("model", "prompts", "output", "base_url", "ledger", "resume", "overwrite"),
        *("model_revision", "samples", "seed", "limit"),
    ),
    "build": (
        *("model", "base_url", "judge_model", "judge_url"),
        *("input", "output", "ledger", "resume", "overwrite", "seed"),
    ),
    "train": (
        *("model_name_or_path", "model_revision", "adapter_name_or_path"),
        *("dataset_name", "datasets", "output_dir"),
        *("objective", "resume_from_checkpoint", "seed"),
    ),
    "evaluate": (
        *("answers", "baseline", "output", "judge_model", "judge_url", "ledger"),
        *("resume", "overwrite", "bundle", "json", "seed"),
    ),
}
"""What a loop sets itself in the options of its commands."""


class Asked(NamedTuple):
    """A model to ask.

    Attributes:
        model: Its name, as commands take it.
        url: Address of its server; None for one in this process.
    """

    model: str
    url: str | None

    def check(self) -> None:
        """Refuses a program that does not exist, before any work.

        Raises:
            UserError: It does not.
        """
        if self.model.startswith("program:"):
            load_dotted(self.model.removeprefix("program:"), "program")

    def options(self, model: str, url: str) -> dict[str, Any]:
        """The options that name it, under the names that they have there."""
        return {model: here(self.model) if self.url is None else self.model, url: self.url}


@dataclass(kw_only=True)
class Options:
    """Options of `alignment loop`."""

    method: str = field(metadata={"help": "a file of alignment/loops, or a class by dotted path"})
    model: str = field(metadata={"help": "the model to start from, a folder or hub id"})
    prompts: Path = field(metadata={"help": "file of prompts that rounds draw from"})
    held_out: Path = field(metadata={"help": "file of prompts that rounds are evaluated on"})
    output: Path = field(metadata={"help": "folder of the run"})
    prompts_per_round: int = field(metadata={"help": "how many prompts a round answers"})
    examples_per_round: int | None = field(
        default=None, metadata={"help": "most examples that a round trains on; unset, all"}
    )
    rounds: int = field(default=3, metadata={"help": "most rounds"})
    patience: int | None = field(
        default=1, metadata={"help": "rounds without gain after which to stop; null: never"}
    )
    seed: int = field(default=0, metadata={"help": "of prompts, draws and training"})
    method_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "the method's own settings"}
    )
    builder_model: str | None = field(
        default=None, metadata={"help": "whom the method asks about answers: judge, reviser, rater"}
    )
    builder_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    judge_model: str = field(
        metadata={"help": "who compares the answers of rounds; best not the one above"}
    )
    judge_url: str | None = field(
        default=None, metadata={"help": "address of the judge's server; unset, it runs here"}
    )
    audit_model: str | None = field(
        default=None, metadata={"help": "a second judge that the first is watched by"}
    )
    audit_url: str | None = field(default=None, metadata={"help": "address of its server"})
    serve: str | None = field(
        default=None,
        metadata={
            "help": "command that serves a model for generation, with the fields `model` (a whole "
            "one) and `port`; unset, models answer in this process"
        },
    )
    generate: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of `alignment generate`"}
    )
    build: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the method's builder"}
    )
    train: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of `alignment train`"}
    )
    evaluate: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of `alignment eval winrate`"}
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads of torch; on a CPU results depend on them"}
    )

    def __post_init__(self) -> None:
        counts = ("prompts_per_round", "examples_per_round", "rounds", "patience", "threads")
        check_counts(self, *counts)
        if self.serve is not None and not {"{model}", "{port}"} <= {*_split(self.serve)}:
            raise ValueError("`serve` must have `{model}` and `{port}` among its words")
        for name, fixed in FIXED.items():
            taken = [key for key in getattr(self, name) if key.replace("-", "_") in fixed]
            if taken:
                raise ValueError(f"`{name}.{taken[0]}` is set by the loop itself; leave it out")

    @property
    def builder(self) -> Asked | None:
        """Whom the method asks about answers."""
        return None if self.builder_model is None else Asked(self.builder_model, self.builder_url)

    @property
    def judge(self) -> Asked:
        """Who compares the answers of rounds."""
        return Asked(self.judge_model, self.judge_url)

    @property
    def audit(self) -> Asked | None:
        """The second judge."""
        return None if self.audit_model is None else Asked(self.audit_model, self.audit_url)


def check_keys(options: Options, builder: str | None) -> None:
    """Refuses options of commands that do not exist, before any work.

    Args:
        options: Of the loop.
        builder: The builder that `build` is for; None where the method has none.

    Raises:
        UserError: The nearest option that exists is named.
    """
    verbs = {"generate": "generate", "train": "train", "evaluate": "eval winrate"}
    if builder is not None:
        verbs["build"] = f"build {builder}"
    elif options.build:
        raise UserError(f"`build` has no use: the loop `{options.method}` has no builder")
    for name, verb in verbs.items():
        given: Mapping[str, Any] = getattr(options, name)
        known = [key for key in _known(verb) if key not in FIXED[name]] if given else []
        for key in given:
            if key.replace("-", "_") not in known:
                raise unknown(f"key in `{name}`", key, known)


def _split(command: str) -> list[str]:
    """The words of `serve`."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"`serve` is no command ({error}): {command}") from None


def _known(verb: str) -> list[str]:
    module = importlib.import_module(command_module(verb))
    if verb != "train":
        return [f.name for f in dataclasses.fields(module.Options) if f.init]
    return [*module.recipe_keys(), *(f.name for f in dataclasses.fields(launch.Options))]
