"""Train a model by a recipe: `--config recipes/<method>/<run>.yaml`, `--key value` to override.

    accelerate launch -m alignment.train --config recipes/apo/smoke.yaml --learning_rate 1e-5

Keys are those of `GroupConfig` (all of transformers' `TrainingArguments` among them), of TRL's
`ModelConfig` for model and adapter, and of `RunArguments`.

    alignment train --launcher zero3 --gpus 8 --config RECIPE [--key value ...]

is the short form for several processes, by a file of `recipes/accelerate`. On several machines it
takes `--nodes`, `--node_rank`, `--main_address` and `--main_port`, the same command on each; on a
CPU `--processes`. `alignment train --dry-run` does everything but the steps.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

# TRL's trainers report their use to a server unless they are told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
from alignment.cli import UserError, load_recipe, quieten, run, unknown

quieten()

from accelerate import PartialState
from datasets import disable_progress_bars
from peft import PeftConfig
from safetensors import SafetensorError
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config
from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, ScriptArguments

from alignment import compat, launch
from alignment.adapters import adapter_config
from alignment.adapters.base import load_adapter
from alignment.core.scoring import add_value_head
from alignment.data import (
    GroupDataset,
    NothingUsable,
    Preparation,
    Source,
    fingerprint_sources,
    read_sources,
)
from alignment.objectives import load_objective
from alignment.objectives.base import Objective, Progress
from alignment.trainers.base import GroupTrainer, preparation
from alignment.trainers.card import step_of_weights
from alignment.trainers.checkpoints import checkpoints, resolve
from alignment.trainers.config import GroupConfig
from alignment.trainers.engine import check_engine
from alignment.trainers.loading import load_tokenizer
from alignment.trainers.record import Provenance
from alignment.trainers.teacher import Frozen, check_frozen

logger = logging.getLogger("alignment")

_LEAST_FREE = 1 << 20
"""Bytes below which a disk counts as full."""

_REFUSALS = (ImportError, RuntimeError, TypeError, ValueError)
"""What libraries raise of settings that they do not take, and of packages that are missing."""


@dataclass
class RunArguments(ScriptArguments):
    """Where rows and further models come from; TRL's keys, and these.

    Attributes:
        eval_dataset_name: A file or Hub id of its own for evaluation.
        ref_model_name_or_path: A reference other than the model that training starts from.
        teacher_model_name_or_path: The teacher, for objectives that need one.
        second_teacher_model_name_or_path: What the teacher is compared with, for ADPA.
        second_ref_model_name_or_path: A second reference, for objectives that need one.
        adapter_name_or_path: An adapter to continue.
        adapter: A module of `alignment.adapters` to train, in place of the LoRA of `use_peft`.
        adapter_kwargs: Its settings.
    """

    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "A file or Hub id of its own for evaluation."}
    )
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A reference other than the starting model."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher, for objectives that need one."}
    )
    second_teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "What the teacher is compared with, for ADPA."}
    )
    second_ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A second reference, for objectives that need one."}
    )
    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "An adapter to continue training."}
    )
    adapter: str | None = field(
        default=None, metadata={"help": "A module of alignment.adapters to train."}
    )
    adapter_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of that adapter."}
    )


@dataclass
class Recipe:
    """A parsed recipe.

    Attributes:
        data: Sources, splits and further models.
        training: Settings of the run.
        model: Model and adapter.
        mixture: Sources of a mixture.
    """

    data: RunArguments
    training: GroupConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig


_KINDS = (RunArguments, GroupConfig, ModelConfig, DatasetMixtureConfig)


def recipe_keys() -> set[str]:
    """The keys that a recipe may have."""
    return {f.name for kind in _KINDS for f in dataclasses.fields(kind) if f.init}


_MISTYPED = re.compile(r"argument --(\w+)\S*: invalid (\w+) value: '(.*)'")
_TYPES = {"int": "a whole number", "float": "a number"}

_ELSEWHERE = {
    "beta": "in `objective_kwargs`, such as `{beta: 0.1}`",
    "label_smoothing": "in `objective_kwargs`",
    "loss_type": "in `objective`, which names the loss",
}
"""Where keys of TRL's trainers stand here, whose nearest ones mean something else."""


class _Parser(TrlParser):
    """TRL's parser; what argparse would answer with its usage is one line here."""

    def error(self, message: str) -> NoReturn:
        found = _MISTYPED.match(message)
        if found is None:
            raise UserError(message)
        key, kind, value = found.groups()
        raise UserError(f"`{key}` takes {_TYPES.get(kind, kind)}, got `{value}`")


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """Reads a YAML recipe and the command line.

    Args:
        argv: Words after the command.

    Raises:
        UserError: A key is unknown (the nearest known one is named) or a value is out of range.
    """
    known = recipe_keys() | {"env"}
    config, words = _from_files(argv, known)
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            name = flag[2:].replace("-", "_")
            if name == "dry_run":
                raise UserError("a dry run is started by `alignment train --dry-run`")
            if name not in known and name.removeprefix("no_") not in known and name != "help":
                raise _unknown("option", flag, name, [f"--{key}" for key in known])
    _check_json(config, words)
    _check_mixture(config.get("datasets") or [])
    parser = _Parser(_KINDS, prog="alignment train", description=__doc__)
    try:
        # As TRL's parser does with the file that it reads.
        os.environ.update({key: str(value) for key, value in dict(config.pop("env", {})).items()})
        parser.set_defaults_with_config(**config)
        recipe = Recipe(*parser.parse_args_into_dataclasses(args=words))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(str(error)) from None
    recipe.training.model_init_kwargs = model_init_kwargs(recipe)
    return recipe


def _unknown(what: str, shown: str, key: str, known: Iterable[str]) -> UserError:
    if key not in _ELSEWHERE:
        return unknown(what, shown, known)
    return UserError(
        f"unknown {what} `{shown}`; here it stands {_ELSEWHERE[key]} (`alignment migrate` makes a "
        "recipe of TRL's)"
    )


def _check_json(config: Mapping[str, Any], words: Sequence[str]) -> None:
    """Checks settings that are mappings; what reads them does not name the key.

    Raises:
        UserError: One is no JSON.
    """
    given = [*config.items()]
    for flag, following in zip(words, [*words[1:], ""], strict=False):
        name, is_joined, value = flag.partition("=")
        if name.startswith("--"):
            given.append((name[2:].replace("-", "_"), value if is_joined else following))
    for key, value in given:
        is_text = isinstance(value, str) and value.startswith("{")
        if is_text and key.endswith(("_kwargs", "_config")):
            try:
                json.loads(value)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"`{key}` is no JSON ({error}): `{value}`; write it as '{{\"key\": 1}}', with "
                    "the single quotes on a command line"
                ) from None


def _from_files(argv: Sequence[str], known: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The keys of the files after `--config`, the last going before, and all other words.

    Raises:
        UserError: A file cannot be read, or a key in it is unknown.
    """
    config: dict[str, Any] = {}
    words = [part for word in argv for part in _words(word)]
    while "--config" in words:
        place = words.index("--config")
        if place + 1 == len(words):
            raise UserError("`--config` takes the path of a recipe")
        path = words[place + 1]
        del words[place : place + 2]
        for key, value in load_recipe(path).items():
            if key not in known:
                raise _unknown(f"key in {path}", key, key, known)
            config[key] = value
    return config, words


def _check_mixture(sources: Any) -> None:
    """Checks the entries of `datasets`.

    Raises:
        UserError: One is no mapping, or has an unknown key, or names no data set.
    """
    known = [field.name for field in dataclasses.fields(DatasetConfig)]
    if not isinstance(sources, list) or not all(isinstance(each, dict) for each in sources):
        raise UserError("`datasets` takes a list of mappings such as `{path: pairs.jsonl}`")
    for number, source in enumerate(sources):
        for key in source:
            if key not in known:
                raise unknown(f"key of datasets[{number}]", str(key), known)
        if "path" not in source:
            raise UserError(f"datasets[{number}] names no data set: set `path`")


def prepare_data(recipe: Recipe) -> tuple[GroupDataset, GroupDataset | None]:
    """Rows of the recipe as groups of token ids; nothing of the model but its tokenizer is read.

    Returns:
        The training set, and the evaluation set where the recipe has one.
    """
    objective = objective_of(recipe)
    model = recipe.model.model_name_or_path
    if model is None:
        raise UserError("the recipe names no model: set `model_name_or_path`")
    tokenizer = load_tokenizer(model, recipe.training)
    check_frozen(objective, model, frozen_of(recipe), tokenizer, recipe.training)
    prepare = preparation(objective, tokenizer, recipe.training)
    sources = _train_sources(recipe), _eval_sources(recipe)
    state = PartialState()
    # One process prepares, the others read what it has stored.
    with state.main_process_first():
        train, evaluation = (_prepare(prepare, recipe, each) for each in sources)
    if train is None:
        raise UserError("the recipe names no data: set `dataset_name` or `datasets`")
    if recipe.mixture.test_split_size is not None:
        train, evaluation = train.split(recipe.mixture.test_split_size, recipe.training.seed)
    return train, evaluation


def build_trainer(recipe: Recipe, *, keep_rejects: bool = True) -> GroupTrainer:
    """Prepares the data, checks it against the objective, and only then loads the model.

    Args:
        recipe: What is trained, on what and how.
        keep_rejects: Writes the rejected rows to `output_dir`.
    """
    args, model = recipe.training, recipe.model
    check_engine(args, model.attn_implementation)
    fresh = fresh_adapter(recipe)
    _check_steering(objective_of(recipe), fresh, recipe.data.adapter_name_or_path)
    folder = Path(args.output_dir)
    check_output(folder)
    asked = args.resume_from_checkpoint
    args.resume_from_checkpoint = resolve(asked, folder)
    try:
        train, evaluation = prepare_data(recipe)
    except NothingUsable as error:
        if not keep_rejects:
            raise
        rejects = folder / "rejects.jsonl"
        error.groups.write_rejects(rejects)
        raise UserError(f"{error}; all rows with their reasons: {rejects}") from None
    _report_data(train, evaluation, args.planned_batch_size)
    if keep_rejects and PartialState().is_main_process:
        _write_rejects(train, evaluation, folder)
    policy: Any = model.model_name_or_path
    try:
        if recipe.data.adapter_name_or_path is not None:
            policy = _continued(recipe)
        trainer = GroupTrainer(
            policy,
            args,
            train,
            evaluation,
            processing_class=load_tokenizer(str(model.model_name_or_path), args),
            ref_model=recipe.data.ref_model_name_or_path,
            teacher_model=recipe.data.teacher_model_name_or_path,
            second_teacher_model=recipe.data.second_teacher_model_name_or_path,
            second_ref_model=recipe.data.second_ref_model_name_or_path,
            quantization_config=get_quantization_config(model),
            peft_config=fresh,
        )
    except _REFUSALS as error:
        raise _refused(error) from error
    if trainer.is_world_process_zero():
        _report_start(folder, asked, args.resume_from_checkpoint)
    return trainer


def take_steps(trainer: GroupTrainer) -> None:
    """Trains, from the checkpoint that the settings name.

    Raises:
        UserError: Among others, where a library does not take the settings of optimiser, scheduler
            or evaluation. An error of a step is no matter of settings and stays as it is.
    """
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
        if str(trainer.args.resume_from_checkpoint).endswith(f"-{trainer.state.global_step}"):
            logger.info("the run was complete: no step was left to take")
    except (KeyError, *_REFUSALS) as error:
        # The scheduler is the last to be made before the first step.
        if trainer.lr_scheduler is not None and "`metric_for_best_model`" not in str(error):
            raise
        raise _refused(error) from error


def _refused(error: Exception) -> UserError:
    # It may be no matter of settings after all.
    logger.debug("what lies behind the line below", exc_info=error)
    words = str(error.args[0] if isinstance(error, KeyError) else error)
    return UserError(f"the recipe cannot be trained: {' '.join(words.split())}")


def fresh_adapter(recipe: Recipe) -> PeftConfig | None:
    """The adapter that the recipe begins; None where it goes on with one or trains the model.

    Raises:
        UserError: It asks for two, or for one that there is not.
    """
    data = recipe.data
    settings = _mapping(data.adapter_kwargs)
    wanted = {
        "adapter_name_or_path": data.adapter_name_or_path is not None,
        "adapter": data.adapter is not None,
        "use_peft": recipe.model.use_peft,
    }
    if data.adapter is None:
        if settings:
            raise UserError("adapter_kwargs are settings of an `adapter`, which is not set")
        return None if data.adapter_name_or_path else _lora(recipe.model)
    if sum(wanted.values()) > 1:
        named = "` and `".join(name for name, is_set in wanted.items() if is_set)
        raise UserError(f"`{named}` ask for an adapter each: set one of them")
    return adapter_config(data.adapter, settings)


def _lora(model: ModelConfig) -> PeftConfig | None:
    targets = model.lora_target_modules
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise UserError(
                f"lora_target_modules: `{targets}` is no regular expression ({error}); mend it, or "
                "list names of modules"
            ) from None
    return get_peft_config(model)


def _check_steering(objective: Objective, fresh: Any, continued: str | None) -> None:
    """Checks that a fresh adapter takes the preference that the objective steers it by."""
    preference = objective.steering(Progress())
    if preference is None or continued is not None:
        return
    if getattr(fresh, "dimensions", None) != len(preference):
        raise UserError(
            f"{type(objective).__name__} steers an adapter of {len(preference)} dimensions: set "
            f"`adapter: panacea` and `adapter_kwargs: {{dimensions: {len(preference)}}}`"
        )


def model_init_kwargs(recipe: Recipe) -> dict[str, Any]:
    """What `from_pretrained` is told of the model."""
    model = recipe.model
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **_mapping(recipe.training.model_init_kwargs),
    }


def main(argv: list[str] | None = None) -> None:
    """Trains by a recipe, evaluates, saves, and says what became of the data."""
    compat.ignore_renamed()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    argv = sys.argv[1:] if argv is None else argv
    if launch.is_wanted(argv):
        launch.main(argv)
        return
    recipe = parse_recipe(argv)
    if recipe.training.log_level == "debug":
        logger.setLevel(logging.DEBUG)
    if not PartialState().is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
        disable_progress_bars()
    trainer = build_trainer(recipe)
    trainer.provenance = provenance(recipe, argv)
    args = recipe.training
    with _telling_how_to_go_on(Path(args.output_dir)):
        take_steps(trainer)
        metrics = _last_evaluation(trainer)
        trainer.save_model()
        trainer.save_state()
    tokens = trainer.total_tokens()
    if trainer.is_world_process_zero():
        _report_end(trainer, tokens, metrics)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=recipe.data.dataset_name)
    trainer.accelerator.end_training()


def provenance(recipe: Recipe, argv: Sequence[str]) -> Provenance:
    """What a run's record says of command and data."""
    held_out = recipe.mixture.test_split_size
    train, evaluation = _train_sources(recipe), _eval_sources(recipe)
    return Provenance(
        launch.command_line(argv),
        tuple(source.path for source in train),
        tuple(source.path for source in (train if held_out is not None else evaluation)),
    )


def _last_evaluation(trainer: GroupTrainer) -> dict[str, float]:
    """Metrics of the trained model on the evaluation set, taken anew only if they are others'."""
    if trainer.eval_dataset is None:
        return {}
    step = step_of_weights(trainer)
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == step:
            return cast("dict[str, float]", entry)
    return trainer.evaluate()


def _words(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _report_start(folder: Path, asked: str | bool | None, found: str | None) -> None:
    """Tells where a run goes on, or what it is going to be written over."""
    if found:
        logger.info("going on from %s", found)
        return
    if asked:
        logger.info("there is no checkpoint in %s yet: starting at the first step", folder)
    if last := next(iter(checkpoints(folder)), None):
        logger.warning(
            "starting anew over %s; `--resume_from_checkpoint latest` would go on from it", last
        )
    elif any(folder.glob("*.safetensors")):
        logger.warning("starting anew over the run in %s; another `output_dir` keeps it", folder)


@contextmanager
def _telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Tells Ctrl-C and a full disk in one line; the latter has a name in each writer of weights."""
    try:
        yield
    except KeyboardInterrupt:
        last = next(iter(checkpoints(folder)), None)
        remedy = f"`--resume_from_checkpoint latest` goes on from {last}"
        error = UserError(f"interrupted; {remedy if last else 'there is no checkpoint yet'}")
        error.status = 130
        raise error from None
    except (SafetensorError, RuntimeError) as error:
        if shutil.disk_usage(folder).free > _LEAST_FREE:
            raise
        raise UserError(f"{folder} is full: make room and resume, or choose another") from error


def objective_of(recipe: Recipe) -> Objective:
    """The objective that a recipe names.

    Raises:
        UserError: There is none of that name, or it does not take the hyper-parameters.
    """
    args = recipe.training
    try:
        return load_objective(args.objective, _mapping(args.objective_kwargs))
    except ValueError as error:
        raise UserError(str(error)) from None


def frozen_of(recipe: Recipe) -> Frozen:
    """The names of the frozen models beside the reference."""
    return Frozen(
        teacher=recipe.data.teacher_model_name_or_path,
        second_teacher=recipe.data.second_teacher_model_name_or_path,
        second_ref_model=recipe.data.second_ref_model_name_or_path,
    )


def _train_sources(recipe: Recipe) -> list[Source]:
    data = recipe.data
    if recipe.mixture.datasets:
        return [
            Source(**vars(source), streaming=recipe.mixture.streaming)
            for source in recipe.mixture.datasets
        ]
    if data.dataset_name is None:
        return []
    return [_source(data, data.dataset_name, data.dataset_train_split)]


def _eval_sources(recipe: Recipe) -> list[Source]:
    """What is evaluated on, beside a part of the training data that `test_split_size` holds out.

    Raises:
        UserError: Two things are named, or an evaluation is asked for and there is nothing.
    """
    data, holds_out = recipe.data, recipe.mixture.test_split_size is not None
    if data.eval_dataset_name is not None:
        if holds_out:
            raise UserError(
                "`eval_dataset_name` and `test_split_size` name evaluation data each: set one of "
                "them"
            )
        return [_source(data, data.eval_dataset_name, data.dataset_test_split)]
    if holds_out or not recipe.training.do_eval:
        return []
    remedy = "set `eval_dataset_name`, or `test_split_size` to hold out a part"
    if recipe.mixture.datasets:
        raise UserError(f"a mixture has no `test` split to evaluate on: {remedy}")
    if data.dataset_name is None:
        return []
    source = _source(data, data.dataset_name, data.dataset_test_split)
    files = source.files
    if (
        files is not None
        and files == _source(data, data.dataset_name, data.dataset_train_split).files
    ):
        raise UserError(
            f"`{data.dataset_name}` has no `{data.dataset_test_split}` split to evaluate on: "
            f"{remedy}"
        )
    return [source]


def _source(data: RunArguments, path: str, split: str) -> Source:
    return Source(path, name=data.dataset_config, split=split, streaming=data.dataset_streaming)


def _prepare(prepare: Preparation, recipe: Recipe, sources: list[Source]) -> GroupDataset | None:
    if not sources:
        return None
    args = recipe.training
    most = None
    if any(source.streaming for source in sources):
        # A stream may have no end; what the steps will read is enough.
        most = args.max_steps * args.planned_batch_size if args.max_steps > 0 else None
    return prepare(read_sources(sources), fingerprint_sources(sources), most)


def _continued(recipe: Recipe) -> Any:
    from alignment.trainers.loading import load_model

    base = load_model(
        str(recipe.model.model_name_or_path),
        recipe.training,
        get_quantization_config(recipe.model),
    )
    adapter = str(recipe.data.adapter_name_or_path)
    if "values" in objective_of(recipe).needs:
        add_value_head(base)
    try:
        return load_adapter(base, adapter, is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"`{adapter}` is no adapter of this model: {str(error).splitlines()[0]}"
        ) from None


def check_output(folder: Path) -> None:
    """Creates the output folder and tries to write there.

    Raises:
        UserError: It cannot be written.
    """
    probe = folder / ".write_test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 65536)
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to output_dir {folder}: {error.strerror}; choose another"
        ) from None


def _report_data(train: GroupDataset, evaluation: GroupDataset | None, batch: int) -> None:
    logger.info("training data: %s", train.report)
    if batch > len(train):
        logger.info("a step is to take %d groups: it takes the %d there are", batch, len(train))
    if evaluation is not None:
        logger.info("evaluation data: %s", evaluation.report)


def _write_rejects(train: GroupDataset, evaluation: GroupDataset | None, folder: Path) -> None:
    for name, groups in (("rejects.jsonl", train), ("eval_rejects.jsonl", evaluation)):
        if groups is not None and groups.report.rejected:
            groups.write_rejects(folder / name)
            logger.info("rejected rows with their reasons: %s", folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier run


def _report_end(trainer: GroupTrainer, tokens: int, metrics: dict[str, float]) -> None:
    report = trainer.data_report
    rows = {
        "groups trained on": report.kept,
        **{f"rows rejected: {reason}": count for reason, count in report.rejected.items()},
        **{f"rows noticed: {notice}": count for notice, count in report.notices.items()},
        "steps": trainer.state.global_step,
        "tokens": tokens,
    }
    step = step_of_weights(trainer)
    if step < trainer.state.global_step:
        rows["weights of step"] = f"{step}, the best"
    shown = ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")
    rows |= {name: round(metrics[name], 4) for name in shown if name in metrics}
    rows["saved to"] = trainer.args.output_dir
    width = max(map(len, rows))
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in rows.items()))


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
    if not isinstance(value, dict | None):
        raise UserError(
            "objective_kwargs, adapter_kwargs and model_init_kwargs take a mapping such as "
            f'`{{"beta": 0.1}}`, got `{value}`'
        )
    return dict(value or {})


if __name__ == "__main__":
    run(launch.supervised(main), tell=launch.tell)
