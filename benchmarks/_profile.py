"""Where the time of a step goes, by what it is spent on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

if TYPE_CHECKING:
    from alignment.core.packing import TokenGroup
    from benchmarks._sides import Shape

PRODUCTS, ATTENTION, HEAD = "products of layers", "attention", "head"
OPTIMISER, BATCHES = "optimiser", "batches"
ELEMENTS, BETWEEN = "element-wise", "between operations"

_SPENT_ON = {
    "_Cascade": ATTENTION,
    "_CascadeBackward": ATTENTION,
    "_SpanAttention": ATTENTION,
    "_SpanAttentionBackward": ATTENTION,
    "_TokenLogps": HEAD,
    "_TokenLogpsBackward": HEAD,
    "Optimizer.step": OPTIMISER,
    "enumerate(DataLoader)": BATCHES,
    "aten::mm": PRODUCTS,
    "aten::addmm": PRODUCTS,
    "aten::bmm": PRODUCTS,
}
"""By the name of an operation, up to a number sign; what runs within one belongs to it."""


def where_time_goes(shape: Shape, batches: Sequence[Sequence[TokenGroup]]) -> dict[str, float]:
    """Shares of the time of this project's steps on a CPU, of an epoch after a first one.

    Operations that have no kind of their own are element-wise: norms, activations, rotations, sums
    of adapters, copies. Between operations is Python.
    """
    from benchmarks._sides import Side, trainer_for

    steps = len(batches)
    with tempfile.TemporaryDirectory() as folder:
        side = Side(trl=False)
        trainer = trainer_for(side, shape, shape.model(), batches, Path(folder), 2 * steps)
        watch = _Watch(after=steps, last=2 * steps)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        trainer.train()
    return shares(watch.trace.events())


def shares(events: Iterable[Any]) -> dict[str, float]:
    """Shares of the time from the first event's beginning to the last one's end, largest first."""
    spent = dict.fromkeys([*_SPENT_ON.values(), ELEMENTS], 0.0)
    begin, end = float("inf"), 0.0
    for event in events:
        spent[_kind(event)] += event.self_cpu_time_total
        begin = min(begin, event.time_range.start)
        end = max(end, event.time_range.end)
    spent[BETWEEN] = end - begin - sum(spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return {kind: microseconds / (end - begin) for kind, microseconds in ordered}


def _kind(event: Any) -> str:
    kind = ELEMENTS
    while event is not None:
        # The outermost one decides: a product within the head is the head's.
        kind = _SPENT_ON.get(event.name.partition("#")[0], kind)
        event = event.cpu_parent
    return kind


class _Watch(TrainerCallback):
    """Profiles the steps after one of them, with the making of their batches."""

    def __init__(self, after: int, last: int) -> None:
        self.trace = profile(activities=[ProfilerActivity.CPU])
        self._after, self._last = after, last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins and ends."""
        if state.global_step == self._after:
            self.trace.start()
        elif state.global_step == self._last:
            self.trace.stop()
