"""Trains by several recipes, one after the other, in the processes of one launch.

    accelerate launch ... -m tests.trainers.several RECIPE...

Starting processes takes most of the time of a tiny run, so tests share one start.
"""

from __future__ import annotations

from alignment.cli import run
from alignment.train import main

from accelerate import Accelerator  # isort: skip - after what silences it
from accelerate.state import AcceleratorState, GradientState


def train_all(recipes: list[str]) -> None:
    """Trains by each recipe; the processes stay connected until the last has ended."""
    ended = Accelerator.end_training
    Accelerator.end_training = lambda self: None
    for number, recipe in enumerate(recipes, start=1):
        if number == len(recipes):
            Accelerator.end_training = ended
        AcceleratorState._reset_state()
        GradientState._reset_state()
        main(["--config", recipe])


if __name__ == "__main__":
    run(train_all)
