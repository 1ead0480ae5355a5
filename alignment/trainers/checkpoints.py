"""Checkpoints that are whole or not there, and that say what they belong to.

A checkpoint is written into a folder of its own, read back, described in `checkpoint.json`, flushed
to disk and only then renamed, so that a crash at any moment leaves the previous one as it was.
Before one is used, its files are compared with that description, and the run with the one it came
from: objective, data, engine and models. Resuming then gives the bits of an uninterrupted run, as
long as nothing else of the recipe has changed, such as learning rate, schedule or precision.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, is_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from alignment.cli import UserError
from alignment.core.scoring import model_key

if TYPE_CHECKING:
    from alignment.core.reference import Groups
    from alignment.trainers.base import GroupTrainer

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
"""What a checkpoint holds and belongs to; written last, so that its presence tells the end."""

STAGING = ".saving"
"""Below the output folder, where a checkpoint lies until it is whole."""

WRITTEN = ".written"
"""The same for the weights alone."""

SUMMED = 1 << 30
"""Bytes up to which a file gets a checksum; of larger ones the size alone is compared."""

LATEST = ("true", "auto", "latest")
"""Words that stand for the checkpoint that was saved last and is whole."""

_WORDS = {
    "trained": "trained part",
    "processes": "number of processes",
    "batch_size": "batch size",
}
_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = re.compile(
    r"(adapter_model|model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|adapter_config\.json"
)
_BLOCK = 1 << 22
_SKETCHED = 16
"""About how many values of a weight a sketch takes."""


@dataclass(frozen=True)
class Origin:
    """The run that a checkpoint belongs to: what must be the same, or is another run.

    Attributes:
        objective: The objective with its hyper-parameters.
        trained: `adapter` or `model`.
        engine: What holds the weights: `one process`, `ddp`, `zero-3`, `fsdp`.
        processes: How many there are.
        models: A sketch of the weights that a checkpoint does not hold, by the key of a recipe that
            names the model.
        groups: Groups of the training data.
        data: Fingerprint of their lengths, which the plan is made from.
        batch_size: Groups of an optimiser step.
        seed: Of the order of the data.
    """

    objective: str
    trained: str
    engine: str
    processes: int
    models: dict[str, str]
    groups: int
    data: str
    batch_size: int
    seed: int

    @classmethod
    def of(cls, trainer: GroupTrainer) -> Origin:
        """That of a trainer's own run."""
        model = trainer.unwrap(trainer.model)
        return cls(
            objective=repr(trainer.objective),
            trained="adapter" if is_peft_model(model) else "model",
            engine=_engine(trainer),
            processes=trainer.args.world_size,
            models=trainer.sketches,
            groups=len(trainer.train_dataset),
            data=fingerprint_lengths(trainer.train_dataset),
            batch_size=trainer.plan.batch_size,
            seed=trainer.plan.seed,
        )

    def difference(self, other: Origin, *, same_data: bool) -> str | None:
        """How another run differs from this one's checkpoint, with the remedy; None if in nothing.

        Args:
            other: The run that would resume.
            same_data: Whether the plan's position is to be taken up.
        """
        names = ["objective", "trained", "engine", "processes", "models"]
        if same_data:
            names += ["groups", "data", "batch_size", "seed"]
        name = next((n for n in names if getattr(self, n) != getattr(other, n)), None)
        if name is None:
            return None
        was, now = getattr(self, name), getattr(other, name)
        if name in ("groups", "data"):
            seen = f"{was} and now {now} groups" if name == "groups" else "other rows of data"
            remedy = "give it the same data, or `ignore_data_skip: true` to begin an epoch of these"
            return f"it was trained on {seen}: {remedy}"
        if name == "models":
            key = next(k for k in {**was, **now} if was.get(k) != now.get(k))
            return (
                f"it was trained with other weights than `{key}` has here: name the model, and the "
                "adapter, that it began with"
            )
        what = _WORDS.get(name, name)
        option = "adapter_name_or_path" if self.trained == "adapter" else "model_name_or_path"
        remedy = f"start it as it was, or begin a new run from its weights with `{option}`"
        return f"its {what} was {was}, here it is {now}: {remedy}"


def sketches(
    policy: nn.Module, others: Mapping[str, nn.Module | None], *, start_stays: bool
) -> dict[str, str]:
    """Tells models apart by the names of their weights and a few values of each, in bfloat16.

    One process answers for all; of weights that ZeRO-3 has dealt out it takes its own part.

    Args:
        policy: Before it is trained. What trains is in its checkpoints, and left out.
        others: The frozen models, by name.
        start_stays: What trains of the policy is taken as well, for it is the reference.

    Returns:
        By the key of a recipe that names the model.
    """
    answer: list[dict[str, str]] = [{}]
    if PartialState().is_main_process:
        own = [(n, p) for n, p in policy.named_parameters() if start_stays or not p.requires_grad]
        answer[0]["model_name_or_path"] = _sketch(own)
        for name, model in others.items():
            if model is not None:
                answer[0][model_key(name)] = _sketch(model.named_parameters())
    broadcast_object_list(answer, from_process=0)
    return answer[0]


def _sketch(parameters: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        values = getattr(parameter, "ds_tensor", parameter).detach().flatten()
        some = values[:: max(1, values.numel() // _SKETCHED)].to(torch.bfloat16)
        digest.update(f"{name}:{some.tolist()}".encode())
    return digest.hexdigest()[:16]


def fingerprint_lengths(groups: Groups) -> str:
    """Names the data by the lengths of its groups in order, which is what a plan depends on."""
    lengths = np.ascontiguousarray(groups.lengths("shared"), dtype=np.int64)
    return hashlib.sha256(lengths.tobytes()).hexdigest()[:16]


# ---- Writing ----


def remove_leftovers(folder: Path) -> None:
    """Removes what a run that was killed while saving left in its output folder."""
    for name in (STAGING, WRITTEN):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def replacing(folder: Path, staged: Path, run: Path) -> Iterator[None]:
    """Moves what is written into `staged` to `folder` file by file, once all of it is there.

    Args:
        folder: May hold other files. They stay, but for weights of an earlier save, which would be
            loaded in place of the new ones or with them.
        staged: On the same disk; gone afterwards.
        run: The output folder of the run, whose checkpoints a message offers.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    if (folder / "README.md").is_file():  # peft adds to the card that is there
        shutil.copy(folder / "README.md", staged)
    with removed_on_failure(staged, folder, run):
        yield
        folder.mkdir(parents=True, exist_ok=True)
        for path in _outdated(folder, {path.name for path in staged.iterdir()}):
            path.unlink()
        for path in sorted(staged.iterdir()):
            _flush(path)
            os.replace(path, folder / path.name)
    shutil.rmtree(staged)


def _outdated(folder: Path, written: set[str]) -> list[Path]:
    """The weights of an earlier save; beside an adapter a model stays, it may be its base."""
    kinds = ("adapter_",) if "adapter_config.json" in written else ("",)
    weights = (path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name))
    return [path for path in weights if path.name.startswith(kinds) and path.name not in written]


@contextmanager
def removed_on_failure(staged: Path, folder: Path, run: Path) -> Iterator[None]:
    """Takes away what was written in part, and says in one line what a writer failed of."""
    try:
        yield
    except BaseException as error:
        reason = _why_not_written(error, folder)
        shutil.rmtree(staged, ignore_errors=True)
        if reason is None:
            raise
        raise UserError(f"saving to {folder} failed: {reason}; {_offer(run)}") from error


def commit(staged: Path, final: Path, origin: Origin, *, resumable: bool) -> None:
    """Describes a checkpoint, flushes it to disk and gives it its name.

    Args:
        staged: Where it lies, with all files of all processes.
        final: Its name; what lies there is replaced.
        origin: The run it belongs to.
        resumable: It holds the state of optimiser and scheduler.
    """
    files = {str(path.relative_to(staged)): describe(path) for path in _files(staged)}
    about = {"origin": asdict(origin), "resumable": resumable, "saved": time.time()}
    content = {**about, "files": files}
    (staged / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in _files(staged):
        _flush(path)
    old = staged.with_name(f"replaced-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(staged, final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_checkpoint(trainer: GroupTrainer, folder: Path) -> Iterator[Path]:
    """Gives a folder to write a checkpoint below, and brings it to its place when it is whole.

    Args:
        trainer: Whose checkpoint it is; all of its processes take part.
        folder: The output folder.

    Raises:
        UserError: It could not be written; the checkpoints before it are as they were.
    """
    args, staging = trainer.args, folder / STAGING
    name = f"checkpoint-{trainer.state.global_step}"
    final = folder / name
    if trainer.is_local_process_zero():
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    with removed_on_failure(staging, folder, folder):
        yield staging
        trainer.accelerator.wait_for_everyone()
        best = trainer.state.best_model_checkpoint
        if best is not None and Path(best) == staging / name:
            trainer.state.best_model_checkpoint = str(final)
        if args.should_save:
            trainer.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
            commit(staging / name, final, Origin.of(trainer), resumable=not args.save_only_model)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_local_process_zero() and (staging / name).exists():
            _merge(staging / name, final)  # a node with a disk of its own
    if args.should_save:
        shutil.rmtree(staging, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=args.save_total_limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
            use_mtime=True,
        )


def _merge(staged: Path, final: Path) -> None:
    if (final / MANIFEST).exists():
        return  # a shared disk that tells late of what was renamed
    shutil.rmtree(final, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.rename(staged, final)


def describe(path: Path) -> list[int | None]:
    """Size in bytes and CRC-32 of a file; None for that of a large one."""
    stat = path.stat()
    return [stat.st_size, _checksum(path, stat.st_size, stat.st_mtime_ns)]


@functools.cache
def _checksum(path: Path, size: int, mtime_ns: int) -> int | None:
    if size > SUMMED:
        return None
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Waits until a file or a folder's list of names is on the disk, where the system can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_not_written(error: BaseException, folder: Path) -> str | None:
    """One line about an error of a writer of files; None for any other error."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    torch_writer = isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("PytorchStreamWriter", "inline_container", "unexpected pos")
    )
    if not (isinstance(error, OSError | SafetensorError) or torch_writer):
        return None
    near = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(near).free
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space" in text
    if full or free < _BLOCK:
        return f"the disk is full ({free / 1e6:.0f} MB free): make room"
    return f"{text} ({free / 1e9:.1f} GB free on the disk): make it writable"


# ---- Reading ----


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below an output folder, the one saved last first.

    Not the one of the highest step: that may be left of a run which this one was started anew over.
    """
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_saved, reverse=True)


def _saved(folder: Path) -> tuple[float, int]:
    """When a checkpoint was saved, as it says itself, for copies have other times; and its step."""
    step = int(folder.name.rpartition("-")[2])
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return float(content["saved"]), step
    except (OSError, ValueError, KeyError, TypeError):
        return folder.stat().st_mtime, step


def damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being resumed; None where all its files are as written."""
    if not folder.is_dir():
        return f"no such folder: {folder}"
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, resumable = content["files"], content["resumable"]
        Origin(**content["origin"])
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not finished, or not written by this project"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read, or another version wrote it"
    for name, (size, checksum) in files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        now, now_checksum = describe(path)
        if now != size:
            return f"its file {name} has {now} bytes and was written with {size}"
        if now_checksum != checksum:
            return f"its file {name} is not what was written: another checksum"
    if not resumable:
        return "it holds weights alone (`save_only_model`), and no optimiser to go on with"
    return None


def check_origin(folder: Path, trainer: GroupTrainer) -> None:
    """Checks that a checkpoint belongs to the run that would resume it.

    Raises:
        UserError: It does not; what differs is named, with a checkpoint that fits if there is one.
    """
    own = Origin.of(trainer)
    same_data = not trainer.args.ignore_data_skip
    difference = _origin(folder).difference(own, same_data=same_data)
    if difference is None:
        return
    others = [path for path in checkpoints(folder.parent) if path != folder]
    fitting = (
        path
        for path in others
        if not damage(path) and not _origin(path).difference(own, same_data=same_data)
    )
    other = next(fitting, None)
    offer = "" if other is None else f"; one that fits is {other}"
    raise UserError(f"{folder} is no checkpoint of this run: {difference}{offer}")


def resolve(wanted: str | bool | None, folder: Path) -> str | None:
    """The checkpoint to resume from. One process decides for all.

    Args:
        wanted: A path, or `latest` (also `auto`, `true`) for the newest that is whole; damaged ones
            are passed over with a warning.
        folder: The output folder.

    Returns:
        Its path; None where none is wanted, or `latest` finds none.

    Raises:
        UserError: The one named is damaged, or there are some and all are; what is wrong is named,
            and the last good one offered.
    """
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = _resolve("" if wanted in (None, False) else str(wanted), folder)
        except UserError as error:
            answer[1] = str(error)
    broadcast_object_list(answer, from_process=0)
    path, message = answer
    if message is not None:
        raise UserError(message)
    return None if path is None else str(path)


def _resolve(wanted: str, folder: Path) -> str | None:
    if not wanted:
        return None
    if wanted.lower() not in LATEST:
        reason = damage(Path(wanted))
        if reason is not None:
            near = Path(wanted).parent
            offer = _offer(near if checkpoints(near) else folder)
            raise UserError(f"cannot resume from {wanted}: {reason}; {offer}")
        return wanted
    found = checkpoints(folder)
    for path in found:
        reason = damage(path)
        if reason is None:
            return str(path)
        logger.warning("passing over %s: %s", path, reason)
    if found:
        raise UserError(
            f"cannot resume from {found[0]}: {damage(found[0])}; no other checkpoint in {folder} "
            "is whole: start anew in another `output_dir`"
        )
    return None


def _offer(folder: Path) -> str:
    """What to resume from in an output folder."""
    good = next((path for path in checkpoints(folder) if damage(path) is None), None)
    if good is None:
        return f"{folder} holds no other checkpoint that is whole"
    return f"the last good one is {good}: `--resume_from_checkpoint {good}`"


def _origin(folder: Path) -> Origin:
    return Origin(**json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["origin"])


def _engine(trainer: GroupTrainer) -> str:
    state = trainer.accelerator.state
    plugin = getattr(state, "deepspeed_plugin", None)
    if plugin is not None:
        return f"zero-{plugin.zero_stage}"
    if getattr(state, "fsdp_plugin", None) is not None:
        return "fsdp"
    return "one process" if trainer.args.world_size == 1 else "ddp"
