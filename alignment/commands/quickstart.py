"""Build pairs, train on them and measure the win over the start, in one command.

Without options it runs in a small world of its own: a tiny model learns from flawed demonstrations,
a program revises its answers, and APO-zero trains on the pairs. With `--model` it does the same to
a model and prompts of yours. Every stage is one of the other commands, shown as it is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers

from alignment import __version__
from alignment.cli import UserError, check_counts, parse, run, say
from alignment.llm.fingerprint import fingerprint
from alignment.llm.protocol import going_on_by_itself
from alignment.objectives import load_objective
from alignment.quickstart import world
from alignment.quickstart.inputs import (
    Server,
    check_servers,
    find_server,
    split_prompts,
    write_world,
)
from alignment.quickstart.report import report, table
from alignment.stages import RunFolder, Stage, Words, command, training

logger = logging.getLogger("alignment")

JUDGE, REVISER = (f"program:{world.__name__}.{name}" for name in ("judge", "revise"))
PAIR_NEEDS = frozenset({"reference", "role", "pairs"})
BETA = 0.5
"""In the world, for objectives that have one: at 0.1 the chosen side loses likelihood too."""


@dataclass(kw_only=True)
class Options:
    """Options of `alignment quickstart`."""

    output: Path = field(default=Path("runs/quickstart"), metadata={"help": "folder of the run"})
    overwrite: bool = field(default=False, metadata={"help": "start anew where a run exists"})
    seed: int = field(default=0, metadata={"help": "of data, weights and draws"})
    objective: str = field(default="apo", metadata={"help": "what to train the pairs with"})
    objective_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "its hyper-parameters"}
    )
    model: str | None = field(
        default=None, metadata={"help": "your model, a folder or hub id; unset, a tiny one"}
    )
    prompts: Path | None = field(default=None, metadata={"help": "your file of prompts"})
    judge_url: str | None = field(default=None, metadata={"help": "address of the judge's server"})
    judge_model: str | None = field(
        default=None, metadata={"help": "the judge's name there; unset, the only one it has"}
    )
    reviser_url: str | None = field(
        default=None, metadata={"help": "address of the reviser's server; unset, the judge's"}
    )
    reviser_model: str | None = field(
        default=None, metadata={"help": "the reviser's name there; unset, the judge"}
    )
    api_key_env: str | None = field(
        default=None, metadata={"help": "variable with the key for both servers"}
    )
    train_prompts: int = field(default=2400, metadata={"help": "most prompts to build pairs from"})
    held_out_prompts: int = field(default=400, metadata={"help": "most prompts to evaluate on"})
    sft_steps: int = field(default=1000, metadata={"help": "steps of SFT, in the world"})
    steps: int | None = field(
        default=None, metadata={"help": "steps on pairs; unset, 160 in the world, else two epochs"}
    )
    batch_size: int = field(default=24, metadata={"help": "pairs in a step"})
    learning_rate: float | None = field(
        default=None, metadata={"help": "on pairs; unset, 1e-3 in the world, else 2e-5"}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "longest answer, tokens; unset, 48 in the world, else 512"}
    )

    def __post_init__(self) -> None:
        if (self.model is None) != (self.prompts is None):
            raise ValueError("`--model` and `--prompts` go together; without both a world is built")
        if self.model is None and (self.judge_url or self.judge_model):
            raise ValueError("a judge is for `--model` and `--prompts`; the world has its own")
        if self.model is not None and not (self.judge_url or self.judge_model):
            raise ValueError("`--model` needs a judge: `--judge-url`, `--judge-model` or both")
        sizes = ("train_prompts", "held_out_prompts", "sft_steps", "steps", "batch_size")
        check_counts(self, *sizes, "max_tokens")


class Cast(NamedTuple):
    """Who plays which part, and how.

    Attributes:
        start: The model that pairs are built from and training starts at.
        training: Options of `alignment train` beside those that every run has.
        sampling: Options of `alignment generate` likewise.
        reviser: Who edits answers.
        judge: Who compares them.
    """

    start: str
    training: Words
    sampling: Words
    reviser: Server
    judge: Server


def main(argv: list[str]) -> None:
    """`alignment quickstart`."""
    options = parse(Options, argv, "alignment quickstart", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for line in table(quickstart(options)):
        say(line)
    say(f"written to {options.output}")


def quickstart(options: Options) -> dict[str, Any]:
    """Runs all stages that are not done and writes metrics, results and plots.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: The options do not fit together, a server cannot be used, the folder holds
            another run, or a stage's own.
    """
    kwargs = _objective_kwargs(options)
    plan = _world_plan(options, kwargs) if options.model is None else _own_plan(options, kwargs)
    folder = RunFolder(options.output, plan, overwrite=options.overwrite)
    with going_on_by_itself():
        folder.run()
    facts = {"objective": options.objective, "objective_kwargs": kwargs, "seed": options.seed}
    is_world = options.model is None
    return report(options.output, folder.seconds, facts, release=__version__, is_world=is_world)


def _objective_kwargs(options: Options) -> dict[str, Any]:
    """The objective's hyper-parameters, after a check that pairs are all it needs."""
    given = dict(options.objective_kwargs or {})
    try:
        objective = load_objective(options.objective, given)
    except ValueError as error:
        raise UserError(str(error)) from None
    if missing := objective.needs - PAIR_NEEDS:
        raise UserError(
            f"objective `{options.objective}` needs {', '.join(sorted(missing))}, which pairs do "
            "not have; choose one such as `apo`, `dpo` or `simpo`"
        )
    has_beta = any(known.name == "beta" for known in fields(objective))
    return {**({"beta": BETA} if has_beta and options.model is None else {}), **given}


def _world_plan(options: Options, kwargs: dict[str, Any]) -> list[Stage]:
    # With a model this small a second thread or a GPU gains little, and threads that wait for
    # each other take four times as long where other processes run.
    torch.set_num_threads(1)
    out, seed = options.output, options.seed
    sizes = {
        "demonstrations": 12 * options.sft_steps,  # 2.7 epochs
        "train_prompts": options.train_prompts,
        "held_out_prompts": options.held_out_prompts,
        "seed": seed,
    }
    learn: Words = (
        *("--model_name_or_path", out / "blank", "--dataset_name", out / "demonstrations.jsonl"),
        *("--objective", "sft", "--max_steps", options.sft_steps, "--global_batch_size", 32),
        *("--per_device_train_batch_size", 32, "--learning_rate", 2e-3, "--warmup_steps", 30),
        *("--lr_scheduler_type", "cosine", "--adam_beta2", 0.98, "--use_cpu", "true"),
        *("--logging_steps", 20, "--save_steps", 200, "--seed", seed),
    )
    cast = Cast(
        start=str(out / "start"),
        training=(
            *("--max_steps", options.steps or 160, "--use_cpu", "true"),
            *("--per_device_train_batch_size", options.batch_size),
            *("--learning_rate", options.learning_rate or 1e-3),
        ),
        sampling=(
            *("--max_tokens", options.max_tokens or 48, "--device", "cpu"),
            *("--batch_size", 128, "--chunk_size", 256),
        ),
        reviser=Server(REVISER),
        judge=Server(JUDGE),
    )
    return [
        Stage("world", {"version": world.VERSION, **sizes}, lambda: write_world(out, **sizes)),
        training("sft", learn, out / "start"),
        *_shared_plan(options, kwargs, cast),
    ]


def _own_plan(options: Options, kwargs: dict[str, Any]) -> list[Stage]:
    model, prompts, out = str(options.model), Path(str(options.prompts)), options.output
    if not prompts.is_file():
        raise UserError(f"no such file of prompts: {prompts}")
    key = options.api_key_env
    judge = reviser = find_server(options.judge_model, options.judge_url, key)
    if options.reviser_url or options.reviser_model:
        url = options.reviser_url or options.judge_url
        reviser = find_server(options.reviser_model, url, key)
    sizes = {
        "train_prompts": options.train_prompts,
        "held_out_prompts": options.held_out_prompts,
        "seed": options.seed,
    }
    content = {
        "model": fingerprint(model) if Path(model).is_dir() else model,
        "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest()[:16],
    }
    cast = Cast(
        start=model,
        training=(
            *(("--max_steps", options.steps) if options.steps else ("--num_train_epochs", 2)),
            *("--per_device_train_batch_size", 2, "--max_length", 4096),
            *("--learning_rate", options.learning_rate or 2e-5),
        ),
        sampling=("--max_tokens", options.max_tokens or 512),
        reviser=reviser,
        judge=judge,
    )
    servers = {"judge": judge._asdict(), "reviser": reviser._asdict()}
    return [
        Stage("servers", servers, lambda: check_servers({judge, reviser}, key)),
        Stage("prompts", content | sizes, lambda: split_prompts(out, model, prompts, **sizes)),
        *_shared_plan(options, kwargs, cast),
    ]


def _shared_plan(options: Options, kwargs: dict[str, Any], cast: Cast) -> list[Stage]:
    """From prompts to a win rate, the same for the world and for a model of the user's."""
    out, seed = options.output, ("--seed", options.seed)
    answers, adapter = out / "answers", out / "adapter"
    key = ("--api-key-env", options.api_key_env) if options.api_key_env else ()

    def sample(stage: str, model: str | Path, prompts: str, name: str) -> Stage:
        files = ("--prompts", out / "prompts" / prompts, "--output", answers / name)
        return command(stage, "generate", ("--model", model, *files, *cast.sampling, *seed))

    revise: Words = (
        *("--input", answers / "train.jsonl", "--output", out / "pairs.jsonl"),
        *cast.reviser.words("--model", "--base-url"),
        *(*key, *seed),
    )
    learn: Words = (
        *("--model_name_or_path", cast.start, "--dataset_name", out / "pairs.jsonl"),
        *("--objective", options.objective, "--objective_kwargs", json.dumps(kwargs)),
        *("--use_peft", "true", "--lora_r", 16, "--lora_target_modules", "all-linear"),
        *("--global_batch_size", options.batch_size, *cast.training),
        *("--logging_steps", 5, "--save_steps", 50, *seed),
    )
    compare: Words = (
        *("--answers", answers / "after.jsonl", "--baseline", answers / "before.jsonl"),
        *("--output", out / "judged", *cast.judge.words("--judge-model", "--judge-url")),
        *(*key, *seed),
    )
    return [
        sample("answers", cast.start, "train.jsonl", "train.jsonl"),
        command("pairs", "build clair", revise),
        training("adapter", learn, adapter),
        sample("before", cast.start, "held_out.jsonl", "before.jsonl"),
        sample("after", adapter, "held_out.jsonl", "after.jsonl"),
        command("judged", "eval winrate", compare),
    ]


if __name__ == "__main__":
    run(main)
