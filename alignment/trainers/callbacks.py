"""What runs beside the steps: checks, objective state, metrics file, progress bar."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback

from alignment.trainers.verdicts import Verdict, new_alarms, new_verdicts

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

logger = logging.getLogger(__name__)

SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm", "learning_rate")
"""What the console tells of a log, in training and evaluation; the file of metrics holds it all."""
PAUSE = 10.0
"""Least seconds between two lines where there is no bar."""


class StepHooks(TrainerCallback):
    """Calls the trainer back where the base trainer has no method to override."""

    def __init__(self, trainer: GroupTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Runs the checks, once the engine has wrapped the model."""
        self.trainer.before_training()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Updates the objective's state, before anything is logged or saved."""
        self.trainer.step_ended()
        # A log is an average since the last one, which a resumed run does not know of.
        control.should_log |= control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the average of a log where a checkpoint is taken."""
        control.should_log |= control.should_save


class ObjectiveState(TrainerCallback, ExportableState):
    """The objective's small tensors, saved and restored with every checkpoint."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def tensors(self) -> dict[str, Tensor]:
        """The state as an objective reads it."""
        return {name: torch.tensor(value) for name, value in self.values.items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes up what the checkpoint holds; the base trainer leaves callbacks as they are."""
        if state.global_step:
            self.values = state.stateful_callbacks[type(self).__name__]["attributes"]["values"]

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"args": {}, "attributes": {"values": self.values}}


class Consumed(TrainerCallback, ExportableState):
    """What a run has used up so far, saved and restored with every checkpoint.

    Attributes:
        tokens: Positions computed by all processes.
        token_budget: Positions that one forward pass may compute, once one did not fit into
            memory; None before.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.token_budget: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes up what the checkpoint holds."""
        if state.global_step:
            kept = state.stateful_callbacks[type(self).__name__]["attributes"]
            self.tokens, self.token_budget = kept["tokens"], kept["token_budget"]

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"args": {}, "attributes": dict(vars(self))}


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`, whatever else is reported to, and says what is wrong.

    A verdict is printed once per occurrence, and stands under `verdicts` in the line of its log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts anew, or drops what an interrupted run logged after the checkpoint."""
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if state.global_step and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if self._step(line) <= state.global_step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _step(self, line: str) -> float:
        """The step of a line, infinity where a crash left no record of it."""
        try:
            return float(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: dropped a line that a crash damaged: %.60s", self.path, line)
            return math.inf

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes one line."""
        if not (state.is_world_process_zero and logs):
            return
        row = {"step": state.global_step, **logs}
        found = [str(verdict) for verdict in _news(state.log_history, logs)]
        if found:
            row["verdicts"] = found
            for verdict in found:
                logger.warning("step %d: %s", state.global_step, verdict)
        self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a line of one's own; `step` is one of its keys."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _news(history: Sequence[Mapping[str, float]], logs: Mapping[str, float]) -> list[Verdict]:
    """What the last log tells for the first time."""
    if "loss" in logs:
        return new_verdicts(history)
    return new_alarms(history) if "probe/stop_rate" in logs else []


class TokenProgress(ProgressCallback):
    """The usual progress bar with tokens per second beside the time left."""

    def __init__(self, trainer: GroupTrainer) -> None:
        super().__init__()
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts bar and clock."""
        super().on_train_begin(args, state, control, **kwargs)
        self.started, self.tokens = time.monotonic(), self.trainer.tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            seconds = time.monotonic() - self.started
            rate = (self.trainer.tokens_seen - self.tokens) * args.world_size / max(seconds, 1e-9)
            self.training_bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes a line above the bar."""
        line = log_line(state, logs)
        if line and self.training_bar is not None:
            self.training_bar.write(line)


class ProgressLines(TrainerCallback):
    """Lines in the log for a run without a progress bar, as where the output goes to a file."""

    def __init__(self) -> None:
        self.told = -PAUSE

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Says where the run is, unless it was said a moment ago."""
        line = log_line(state, logs)
        if line and state.is_world_process_zero and time.monotonic() - self.told >= PAUSE:
            self.told = time.monotonic()
            logger.info("%s", line)


def log_line(state: Any, logs: Mapping[str, Any]) -> str:
    """`step 40 of 160: loss 0.93, rewards/margins 0.11`; empty where a log tells none of it."""
    shown = [
        f"{name} {value:.4g}"
        for name, value in logs.items()
        if name in SHOWN or (name.startswith("eval_") and name.endswith(SHOWN))
    ]
    return f"step {state.global_step} of {state.max_steps}: {', '.join(shown)}" if shown else ""
