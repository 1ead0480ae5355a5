"""Shares of the time of a step."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks._data import groups_of, sorted_batches
from benchmarks._profile import (
    ATTENTION,
    BATCHES,
    BETWEEN,
    ELEMENTS,
    HEAD,
    OPTIMISER,
    PRODUCTS,
    shares,
    where_time_goes,
)
from benchmarks._sides import Shape


def event(name: str, start: float, end: float, own: float, parent: Any = None) -> Any:
    """An operation as the profiler tells it, `own` microseconds of it in no other one."""
    times = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=times, self_cpu_time_total=own, cpu_parent=parent)


def test_an_operation_belongs_to_the_outermost_one_that_has_a_kind():
    """100 us from first to last, 95 of them in operations."""
    head = event("_TokenLogps", 0, 40, 10)
    optimiser = event("Optimizer.step#AdamW.step", 40, 50, 5)
    found = shares(
        [
            head,
            event("aten::mm", 10, 40, 30, head),
            optimiser,
            event("aten::_fused_adamw_", 42, 47, 5, optimiser),
            event("aten::mm", 50, 70, 20),
            event("aten::mul", 75, 100, 25),
        ]
    )
    expected = {HEAD: 0.4, ELEMENTS: 0.25, PRODUCTS: 0.2, OPTIMISER: 0.1, BETWEEN: 0.05}
    assert {kind: share for kind, share in found.items() if share} == pytest.approx(expected)
    assert list(found)[:2] == [HEAD, ELEMENTS]


@pytest.mark.slow
def test_the_shares_of_a_step_are_all_of_it():
    batches = sorted_batches(groups_of("hh", 2), 2, 2)
    found = where_time_goes(Shape(vocabulary=16_000, layers=2), batches)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0
    assert min(found[PRODUCTS], found[ATTENTION], found[HEAD]) > 0.01
    assert min(found[OPTIMISER], found[BATCHES]) > 0
