"""The plan of an epoch: which groups each process computes in each forward pass.

The plan is a pure function of the groups' lengths, the seed and the number of processes. Every
optimiser step holds exactly the groups that the recipe's batch size says, dealt into world x
accumulation bins of balanced cost, so every process makes the same number of calls. Resuming is
planning again and skipping.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

Bin = tuple[int, ...]
"""Indices of the groups of one forward pass. Negative numbers mark a filler: the group `~index`,
which is computed to keep processes in step and counts for nothing."""


def filler(index: int) -> Bin:
    """A bin that computes a group without counting it."""
    return (~index,)


@dataclass(frozen=True, eq=False)
class Plan:
    """How a run walks its data.

    Attributes:
        lengths: (G,) positions that each group takes.
        batch_size: Groups per optimiser step over all processes.
        world_size: Processes.
        accumulation: Forward passes per optimiser step and process.
        seed: Decides the order of every epoch.
        shuffle: False keeps the order of the data.
        drop_last: Leaves out the last step of an epoch where it is not full.
    """

    lengths: np.ndarray
    batch_size: int
    world_size: int
    accumulation: int
    seed: int
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            raise ValueError("there are no groups to plan for")
        if self.drop_last and len(self.lengths) < self.batch_size:
            raise ValueError(
                f"{len(self.lengths)} groups do not fill one batch of {self.batch_size}: "
                "lower the batch size or set `dataloader_drop_last: false`"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        steps = len(self.lengths) / self.batch_size
        return math.floor(steps) if self.drop_last else math.ceil(steps)

    @property
    def calls_per_epoch(self) -> int:
        """Forward passes of one process in one epoch."""
        return self.steps_per_epoch * self.accumulation

    def steps(self, epoch: int) -> Iterator[np.ndarray]:
        """The groups of each optimiser step of `epoch`, in order."""
        order = np.arange(len(self.lengths))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        for step in range(self.steps_per_epoch):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def step(self, number: int) -> np.ndarray:
        """The groups of optimiser step `number` of the run, counted from 0."""
        epoch, index = divmod(number, self.steps_per_epoch)
        return next(islice(self.steps(epoch), index, None))

    def bins(self, epoch: int, rank: int) -> Iterator[Bin]:
        """The forward passes of one process in `epoch`, `accumulation` for every optimiser step."""
        for step in self.steps(epoch):
            yield from self._dealt(step, rank)

    def step_bins(self, number: int, rank: int) -> list[Bin]:
        """The forward passes of one process in optimiser step `number` of the run."""
        return list(self._dealt(self.step(number), rank))

    def _dealt(self, step: np.ndarray, rank: int) -> Iterator[Bin]:
        dealt = deal(self.lengths[step], self.world_size * self.accumulation)
        smallest = int(step[np.argmin(self.lengths[step])])
        for members in dealt[rank :: self.world_size]:
            yield tuple(int(step[i]) for i in members) if members else filler(smallest)


def deal(lengths: Sequence[int] | np.ndarray, count: int) -> list[list[int]]:
    """Deals items into `count` bins of balanced total length, longest first.

    Args:
        lengths: Length of each item.
        count: Number of bins.

    Returns:
        Item indices of each bin, fullest bin first; bins are empty where items run out.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        total, number = heapq.heappop(heap)
        bins[number].append(item)
        heapq.heappush(heap, (total + int(lengths[item]), number))
    return sorted(bins, key=lambda members: -sum(int(lengths[i]) for i in members))


def smallest_accumulation(plan: Plan, max_tokens: int, epochs: int) -> int:
    """The smallest accumulation at which no bin of the run exceeds a token budget.

    Args:
        plan: A plan whose accumulation is ignored.
        max_tokens: Positions that one forward pass may compute; a single longer group is let
            through.
        epochs: Epochs to look at; every epoch deals other groups together.

    Returns:
        Forward passes per optimiser step and process.
    """
    budget = max(max_tokens, int(plan.lengths.max()))
    accumulation = 1
    for epoch in range(epochs):
        for step in plan.steps(epoch):
            lengths = plan.lengths[step]
            while True:
                fullest = deal(lengths, plan.world_size * accumulation)[0]
                if sum(int(lengths[i]) for i in fullest) <= budget:
                    break
                accumulation += 1
    return accumulation


def largest_bin(plan: Plan, epochs: int) -> Bin:
    """The groups of the forward pass that computes most positions in the whole run.

    Args:
        plan: A plan.
        epochs: Epochs to look at; every epoch deals other groups together.
    """
    largest: Bin = ()
    most = -1
    for epoch in range(epochs):
        for step in plan.steps(epoch):
            lengths = plan.lengths[step]
            fullest = deal(lengths, plan.world_size * plan.accumulation)[0]
            total = sum(int(lengths[i]) for i in fullest)
            if total > most:
                largest, most = tuple(int(step[i]) for i in fullest), total
    return largest
