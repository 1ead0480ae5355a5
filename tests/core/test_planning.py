"""Every group once per epoch, in exact batches, dealt evenly to as few passes as fit."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from alignment.core.planning import Plan, deal, filler, smallest_accumulation


def plan(count: int = 23, **settings: Any) -> Plan:
    """Groups of 1 to 200 positions, in batches of six on one process."""
    lengths = np.random.default_rng(count).integers(1, 200, count)
    defaults = {"batch_size": 6, "world_size": 1, "accumulation": 1, "seed": 0}
    return Plan(lengths, **{**defaults, **settings})


def random_plans(number: int) -> Iterator[Plan]:
    rng = np.random.default_rng(7)
    for _ in range(number):
        batch_size = int(rng.integers(1, 12))
        yield plan(
            int(rng.integers(batch_size, 60)),
            batch_size=batch_size,
            world_size=int(rng.integers(1, 5)),
            accumulation=int(rng.integers(1, 5)),
            seed=int(rng.integers(0, 1000)),
            drop_last=bool(rng.integers(0, 2)),
        )


def steps_by_rank(a_plan: Plan, epoch: int) -> list[list[list[tuple[int, ...]]]]:
    """For each rank and optimiser step, the bins it computes."""
    size = a_plan.accumulation
    result = []
    for rank in range(a_plan.world_size):
        bins = list(a_plan.bins(epoch, rank))
        result.append([bins[i : i + size] for i in range(0, len(bins), size)])
    return result


def test_every_group_is_counted_once_per_epoch():
    for a_plan in random_plans(60):
        for epoch in range(2):
            counted = [
                index
                for rank in steps_by_rank(a_plan, epoch)
                for step in rank
                for members in step
                for index in members
                if index >= 0
            ]
            left_out = len(a_plan.lengths) % a_plan.batch_size if a_plan.drop_last else 0
            assert len(counted) == len(set(counted)) == len(a_plan.lengths) - left_out
            assert set(counted) <= set(range(len(a_plan.lengths)))


def test_every_optimiser_step_holds_exactly_the_batch():
    """Over all ranks and passes; only the last step of an epoch may be smaller."""
    for a_plan in random_plans(60):
        ranks = steps_by_rank(a_plan, 0)
        sizes = [
            sum(index >= 0 for rank in ranks for members in rank[step] for index in members)
            for step in range(a_plan.steps_per_epoch)
        ]
        assert sizes[:-1] == [a_plan.batch_size] * (len(sizes) - 1)
        remainder = len(a_plan.lengths) % a_plan.batch_size
        full = a_plan.drop_last or not remainder
        assert sizes[-1] == (a_plan.batch_size if full else remainder)


def test_all_ranks_make_the_same_number_of_calls():
    for a_plan in random_plans(60):
        calls = [len(list(a_plan.bins(1, rank))) for rank in range(a_plan.world_size)]
        assert calls == [a_plan.calls_per_epoch] * a_plan.world_size
        assert a_plan.calls_per_epoch == a_plan.steps_per_epoch * a_plan.accumulation


def test_a_pass_without_groups_repeats_the_shortest_one_of_its_step_as_a_filler():
    """Five groups in eight bins: three passes keep step with the others and count for nothing."""
    for seed in range(5):
        a_plan = plan(5, batch_size=5, world_size=4, accumulation=2, seed=seed)
        bins = [members for rank in range(4) for members in a_plan.bins(0, rank)]
        shortest = int(a_plan.lengths.argmin())
        assert sorted(bins)[:3] == [filler(shortest)] * 3
        assert sorted(index for members in sorted(bins)[3:] for index in members) == list(range(5))


def test_a_filler_names_a_group_and_is_told_from_it():
    assert [filler(index) for index in (0, 1, 9)] == [(-1,), (-2,), (-10,)]
    assert all(~filler(index)[0] == index for index in range(10))


def test_the_ranks_of_one_pass_carry_about_the_same_load():
    """A bin got its smallest group when none was emptier, so without it none is fuller."""
    for a_plan in random_plans(60):
        count = a_plan.world_size * a_plan.accumulation
        for step in a_plan.steps(0):
            lengths = a_plan.lengths[step]
            dealt = deal(lengths, count)
            loads = [int(lengths[members].sum()) for members in dealt]
            assert loads == sorted(loads, reverse=True)
            assert sorted(item for members in dealt for item in members) == list(range(len(step)))
            if len(step) > count:
                assert all(
                    load - int(lengths[members].min()) <= loads[-1]
                    for load, members in zip(loads, dealt, strict=True)
                )


def test_the_ranks_wait_for_one_another_as_little_as_the_bins_allow():
    """Of bins sorted by load, the fullest go to the first pass of every rank, and so on."""
    for a_plan in random_plans(60):
        ranks = steps_by_rank(a_plan, 0)
        for step in range(a_plan.steps_per_epoch):
            passes = [
                [
                    sum(int(a_plan.lengths[index]) for index in rank[step][number] if index >= 0)
                    for rank in ranks
                ]
                for number in range(a_plan.accumulation)
            ]
            assert all(min(fuller) >= max(emptier) for fuller, emptier in pairwise(passes))


def test_dealing_longest_first_in_figures():
    """8, 7, 6, 5, 4 to two bins: 8+5+4 against 7+6, as each goes to the emptier one."""
    assert deal([4, 8, 6, 5, 7], 2) == [[1, 3, 0], [4, 2]]


def test_the_order_is_a_function_of_seed_and_epoch():
    first, again, other = (np.concatenate(list(plan(seed=s).steps(0))) for s in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    next_epoch = np.concatenate(list(plan(seed=1).steps(1)))
    assert first.tolist() != next_epoch.tolist()
    assert sorted(next_epoch) == sorted(first) == list(range(23))


def test_the_steps_do_not_depend_on_processes_or_accumulation():
    alone = [sorted(step) for step in plan().steps(3)]
    spread = [sorted(step) for step in plan(world_size=3, accumulation=2).steps(3)]
    assert alone == spread
    ranks = steps_by_rank(plan(world_size=3, accumulation=2), 3)
    for number, step in enumerate(alone):
        dealt = [i for rank in ranks for members in rank[number] for i in members if i >= 0]
        assert sorted(dealt) == step


def test_planning_again_and_skipping_is_resuming():
    a_plan = plan(world_size=2, accumulation=2)
    whole = list(a_plan.bins(1, 1))
    rest = list(replace(a_plan).bins(1, 1))[5:]
    assert rest == whole[5:]


def test_without_shuffling_the_order_is_that_of_the_data():
    a_plan = replace(plan(7, batch_size=3), shuffle=False)
    assert [step.tolist() for step in a_plan.steps(4)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_last_step_is_left_out_where_the_recipe_says_so():
    assert plan(23, batch_size=6).steps_per_epoch == 4
    assert plan(23, batch_size=6, drop_last=True).steps_per_epoch == 3
    assert [len(step) for step in plan(23, batch_size=6, drop_last=True).steps(0)] == [6, 6, 6]


def test_a_plan_for_nothing_or_for_less_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="no groups"):
        plan(0)
    with pytest.raises(ValueError, match="5 groups do not fill one batch of 6"):
        plan(5, drop_last=True)
    assert plan(5).steps_per_epoch == 1


def fullest(a_plan: Plan, epochs: int) -> int:
    return max(
        sum(int(a_plan.lengths[i]) for i in members if i >= 0)
        for epoch in range(epochs)
        for rank in range(a_plan.world_size)
        for members in a_plan.bins(epoch, rank)
    )


def test_the_accumulation_is_the_smallest_that_keeps_to_the_budget():
    grown = 0
    for a_plan in random_plans(40):
        budget = int(a_plan.lengths.max()) + 60
        chosen = smallest_accumulation(a_plan, budget, epochs=3)
        assert fullest(replace(a_plan, accumulation=chosen), 3) <= budget
        if chosen > 1:
            grown += 1
            assert fullest(replace(a_plan, accumulation=chosen - 1), 3) > budget
    assert grown > 10


def test_a_group_beyond_the_budget_gets_a_pass_and_sets_the_budget():
    a_plan = replace(plan(), lengths=np.array([50, 10, 10, 10, 10, 10]), batch_size=6)
    chosen = smallest_accumulation(a_plan, 20, epochs=1)
    assert chosen == 2
    assert fullest(replace(a_plan, accumulation=chosen), 1) == 50
