"""Kills a training run at random moments and resumes it, until it has ended.

    python -m tests.trainers.killing RECIPE SEED KILLS

Every start is a fork of this process, which has imported everything and computes nothing. A run
ends itself by SIGKILL, so that the stage and the moment are known: between the passes of a step, at
a batch of the evaluation, or while a checkpoint is written, renamed or an old one removed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alignment.train import main, parse_recipe
from alignment.trainers import checkpoints
from alignment.trainers.base import GroupTrainer

import torch  # isort: skip - after what silences it
from transformers import Trainer

STAGES = {"stepping": 2, "evaluating": 8, "saving": 30}
"""How many places there are to be killed at: passes of a step, batches, what writes and moves."""


class Moment(NamedTuple):
    """When a run is killed.

    Attributes:
        step: Optimiser step after which it is due, or of which, while stepping.
        stage: One of `STAGES`.
        place: Which of the places within the stage.
    """

    step: int
    stage: str
    place: int


def moments(seed: int, kills: int, steps: int, every: int) -> list[Moment]:
    """One moment in each of `kills` equal parts of a run that evaluates and saves together.

    Args:
        seed: Of the choice.
        kills: How many.
        steps: Of the whole run.
        every: Steps between two checkpoints.
    """
    rng, stages = random.Random(seed), list(STAGES)
    found = []
    for number in range(kills):
        # Each part ends with a checkpoint, so that later parts begin later.
        first, last = (round(part * steps / kills / every) for part in (number, number + 1))
        stage = stages[number] if number < len(stages) else rng.choice(stages)
        step = rng.randint(first * every, last * every - 1)
        if stage != "stepping":
            step = every * rng.randint(first + 1, max(first + 1, last))
        found.append(Moment(step, stage, rng.randrange(STAGES[stage])))
    return found


class Killer:
    """Ends this process at a moment of its run."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        self._places = 0
        self._saving = False
        self._step = -1

    def install(self) -> None:
        """Wraps what a run calls at each stage."""
        self._wrap(Trainer, "training_step", "stepping", self._of_trainer)
        self._wrap(GroupTrainer, "prediction_step", "evaluating", self._of_trainer)
        save = Trainer._save_checkpoint

        def saving(trainer: Any, *args: Any) -> Any:
            self._saving, self._step = True, trainer.state.global_step
            return save(trainer, *args)

        Trainer._save_checkpoint = saving
        self._wrap(torch, "save", "saving", self._of_file)
        for module, name in ((checkpoints, "commit"), (os, "rename"), (os, "replace")):
            self._wrap(module, name, "saving", self._while_saving)
        self._wrap(checkpoints, "_flush", "saving", self._while_saving)
        self._wrap(shutil, "rmtree", "saving", self._while_saving)

    def _wrap(self, owner: Any, name: str, stage: str, due: Callable[..., bool]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if stage == self._moment.stage and due(*args):
                self._places += 1
                if self._places > self._moment.place:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def _of_trainer(self, trainer: Any, *_: Any) -> bool:
        return bool(trainer.state.global_step >= self._moment.step)

    def _while_saving(self, *_: Any) -> bool:
        return self._saving and self._step >= self._moment.step

    def _of_file(self, content: Any, path: Any, *_: Any) -> bool:
        if not self._while_saving():
            return False
        if self._places == self._moment.place:
            Path(path).write_bytes(b"half of a file")
        return True


def start(words: list[str], moment: Moment | None) -> int:
    """Trains in a fork of this process; returns how it ended, as `os.waitpid` tells."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    if moment is not None:
        Killer(moment).install()
    try:
        main(words)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def kill_and_resume(recipe: str, seed: int, kills: int) -> None:
    """Trains by a recipe that is killed `kills` times, and says when."""
    words = ["--config", recipe, "--resume_from_checkpoint", "latest"]
    args = parse_recipe(words).training
    for number, moment in enumerate(moments(seed, kills, args.max_steps, args.save_steps), start=1):
        status = start(words, moment)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"kill {number} did not happen: {moment}, status {status}")
        whole = [path.name for path in checkpoints.checkpoints(Path(args.output_dir))]
        sys.stderr.write(
            f"seed {seed}, kill {number} of {kills} while {moment.stage} at step {moment.step}, "
            f"place {moment.place}: checkpoints {', '.join(reversed(whole)) or 'none'}\n"
        )
    if start(words, None) != 0:
        raise SystemExit("the last start failed")


if __name__ == "__main__":
    kill_and_resume(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
