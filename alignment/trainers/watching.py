"""What is seen between the backward passes: losses that are no number, gradients that leap."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from alignment.cli import UserError
from alignment.core.packing import PackedBatch, TokenGroup
from alignment.objectives.base import ObjectiveOutput

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

logger = logging.getLogger(__name__)

SPIKE = 10.0
"""How many times the median of the last gradient norms a norm is that gets a line in the log."""

REMEMBERED = 50
"""Steps that the median is taken over."""

LEAST = 10
"""Steps before which nothing is called a spike."""

OFFENDING = "offending_rows.jsonl"
"""Where the rows of a step that gave no number are written, below the output folder."""

_NAMED = 8
"""Rows that a line of the log names."""


class _Seen(NamedTuple):
    """What is kept of a batch until its step ends; nothing that holds on to a graph.

    Attributes:
        origins: Of its groups.
        sums: (G,) for each term of the loss.
        loss: Of the batch.
    """

    origins: Sequence[str]
    sums: list[Tensor]
    loss: Tensor


class Watch:
    """Stops a run before it learns from what is no number, and names the rows behind a spike.

    Every process takes part in each check, and all come to the same decision.
    """

    def __init__(self, trainer: GroupTrainer) -> None:
        self._trainer = trainer
        self._window: list[_Seen] = []
        self._norms: deque[float] = deque(maxlen=REMEMBERED)

    def loss(self, batch: PackedBatch, output: ObjectiveOutput, loss: Tensor) -> None:
        """Looks at the losses of an optimiser step, before the last backward pass of it.

        Raises:
            UserError: One is no number; the rows are saved, and the model has not learnt from them.
        """
        if batch.real:
            sums = [term.sums.detach() for term in output.terms]
            self._window.append(_Seen(batch.origins, sums, loss.detach()))
        accelerator = self._trainer.accelerator
        if not accelerator.sync_gradients:
            return
        window, self._window = self._window, []
        wrong = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        for seen in window:
            wrong += ~torch.isfinite(seen.loss)
        if int(accelerator.reduce(wrong, reduction="sum")):
            own = [seen for seen in window if not bool(torch.isfinite(seen.loss))]
            self._stop("loss", [row for seen in own for row in self._rows(seen)])

    def forget(self) -> None:
        """Leaves out the batches of a step that is computed anew."""
        self._window.clear()

    def gradient(self, norm: Any) -> None:
        """Looks at the gradient norm of an optimiser step, the same on every process.

        Args:
            norm: Before clipping; None where the engine does not tell it.

        Raises:
            UserError: It is no number, and nothing scales losses (in float16 that happens, and the
                step is left out).
        """
        if norm is None:
            return
        value = float(norm)
        if not math.isfinite(value):
            if not self._trainer.args.fp16:
                rank = self._trainer.args.process_index
                groups = self._step_groups() if rank == 0 else []
                self._stop("gradient norm", [self._record(group, value) for group in groups])
            return
        if len(self._norms) >= LEAST and value > SPIKE * median(self._norms):
            self._tell(value, median(self._norms))
        self._norms.append(value)

    def _tell(self, norm: float, usual: float) -> None:
        if not self._trainer.is_world_process_zero():
            return
        rows = [group.origin for group in self._step_groups()]
        step = self._trainer.state.global_step + 1
        self._trainer.metrics_file.append(
            {"step": step, "grad_norm_spike": norm, "grad_norm_median": usual, "rows": rows}
        )
        logger.warning(
            "step %d: gradient norm %.3g, %.0f times the median of the last %d steps (%.3g); "
            "its rows: %s",
            *(step, norm, norm / usual if usual else math.inf, len(self._norms), usual),
            _listed(rows),
        )

    def _stop(self, what: str, own: Sequence[dict[str, Any]]) -> None:
        trainer = self._trainer
        rows = gather_object(list(own))
        path = Path(trainer.args.output_dir) / OFFENDING
        if trainer.is_world_process_zero():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
            )
        values = sorted({str(row["value"]) for row in rows})
        broken = gather_object([not_finite(trainer.unwrap(trainer.model))])
        weight = next(filter(None, broken), None)
        cause = "usually helps: a lower `learning_rate`, `max_grad_norm: 1`, bf16 instead of fp16"
        if weight is not None:
            cause = f"the weight `{weight}` is no number itself: go back to a model where it is"
        raise UserError(
            f"step {trainer.state.global_step + 1}: the {what} is {' or '.join(values)} in "
            f"{len(rows)} rows ({_listed([row['origin'] for row in rows])}), all saved to {path}; "
            f"{cause}; checkpoints before this step are good"
        )

    def _rows(self, seen: _Seen) -> Iterable[dict[str, Any]]:
        """The groups of a batch whose own part of the loss is no number; all where none is."""
        finite = torch.stack([torch.isfinite(sums) for sums in seen.sums]).all(0)
        wrong = [i for i, fine in enumerate(finite.tolist()) if not fine]
        groups = {group.origin: group for group in self._step_groups()}
        for index in wrong or range(len(seen.origins)):
            origin = seen.origins[index]
            parts = [float(sums[index]) for sums in seen.sums]
            value = next((part for part in parts if not math.isfinite(part)), float(seen.loss))
            yield self._record(groups.get(origin, origin), value)

    def _record(self, group: TokenGroup | str, value: float) -> dict[str, Any]:
        """A row as it was trained on: where it came from and its text."""
        origin = group if isinstance(group, str) else group.origin
        step = self._trainer.state.global_step + 1
        record: dict[str, Any] = {"origin": origin, "step": step, "value": str(value)}
        if not isinstance(group, str):
            decode = self._trainer.processing_class.decode
            record["prompt"] = decode(group.prefix)
            record["responses"] = [
                decode([*context, *response])
                for context, response in zip(group.contexts, group.responses, strict=True)
            ]
        return record

    def _step_groups(self) -> list[TokenGroup]:
        """The groups of the step that is being taken, of all processes."""
        trainer = self._trainer
        members = trainer.plan.step(trainer.state.global_step)
        return [trainer.train_dataset[int(index)] for index in members]


def not_finite(model: nn.Module) -> str | None:
    """The first weight that holds NaN or infinity, by name; of a sharded model, this shard's."""
    for name, parameter in model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter).detach()
        # A sum alone may overflow where no value does, but costs no copy.
        if (
            values.is_floating_point()
            and not bool(torch.isfinite(values.sum()))
            and not bool(torch.isfinite(values).all())
        ):
            return name
    return None


def _listed(rows: Sequence[str]) -> str:
    more = len(rows) - _NAMED
    return ", ".join(rows[:_NAMED]) + (f" and {more} more" if more > 0 else "")
