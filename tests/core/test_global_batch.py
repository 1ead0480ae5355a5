"""The loss and gradient of a global batch do not depend on how it is split into passes."""

import functools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from alignment.core import packing
from alignment.core.packing import Layout, TokenGroup, pack
from alignment.core.planning import Plan
from alignment.core.scoring import Scorer
from alignment.objectives.apo import APO
from alignment.objectives.base import Objective
from alignment.objectives.dpo import DPO
from alignment.objectives.sft import SFT
from tests.core.batches import adapted, adapter_gradient, token_group

OBJECTIVES = (SFT(), DPO(beta=0.3), APO(beta=0.3), APO(variant="down"), APO(form="unpaired"))
GROUPS = 8

Split = Sequence[Sequence[int]]
"""The groups of each pass; negative numbers are fillers, as in `alignment.core.planning.Bin`."""


@functools.cache
def model_and_groups(objective: Objective) -> tuple[torch.nn.Module, list[TokenGroup]]:
    """In float64, but for what transformers computes in float32; unpaired groups differ in size,
    so that their counts do too.
    """
    rng = random.Random(5)
    groups = []
    for number in range(GROUPS):
        pair = objective != APO(form="unpaired")
        roles = [1, -1] if pair else [rng.choice([1, -1]) for _ in range(1 + number % 3)]
        lengths = [rng.randint(1, 20) for _ in roles]
        groups.append(token_group(rng, rng.randint(1, 20), lengths, role=roles))
    return adapted("llama", dtype=torch.float64), groups


def loss_and_gradient(
    objective: Objective, split: Split, layout: Layout = "shared"
) -> tuple[float, Tensor]:
    """As a trainer does: counts of the whole first, then one share of the loss per pass."""
    model, groups = model_and_groups(objective)
    scorer = Scorer(objective, ref_model=None, unwrap=lambda wrapped: wrapped)
    batches = [
        pack([groups[i if i >= 0 else ~i] for i in part], layout, 0, real=all(i >= 0 for i in part))
        for part in split
    ]
    counts = torch.stack([scorer.counts(batch) for batch in batches]).sum(0)
    total = 0.0
    for batch in batches:
        share = objective(scorer(model, batch)).loss(counts)
        share = share if batch.real else 0.0 * share
        share.backward()
        total += float(share.detach())
    return total, adapter_gradient(model)


def assert_same(objective: Objective, split: Split, layout: Layout = "shared") -> None:
    loss, gradient = whole(objective)
    split_loss, split_gradient = loss_and_gradient(objective, split, layout)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    assert float((split_gradient - gradient).norm() / gradient.norm()) < 1e-6


@functools.cache
def whole(objective: Objective) -> tuple[float, Tensor]:
    return loss_and_gradient(objective, [range(GROUPS)])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_every_number_of_micro_batches_gives_the_same_step(objective: Objective):
    for size in (1, 3):
        order = list(range(GROUPS))
        assert_same(objective, [order[i : i + size] for i in range(0, GROUPS, size)])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_every_plan_gives_the_same_step(objective: Objective):
    """Bins of any number of processes and passes, with fillers where groups run out."""
    _, groups = model_and_groups(objective)
    lengths = np.array([group.lengths()[0] for group in groups])
    seen_filler = False
    for world_size, accumulation in ((2, 2), (3, 4)):
        plan = Plan(lengths, GROUPS, world_size, accumulation, seed=1)
        split = [part for rank in range(world_size) for part in plan.bins(0, rank)]
        seen_filler |= any(i < 0 for part in split for i in part)
        assert_same(objective, split)
    assert seen_filler


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_order_and_layout_of_the_passes_play_no_part(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(0)
    order = rng.sample(range(GROUPS), GROUPS)
    assert_same(objective, [order[:3], order[3:]])
    assert_same(objective, [order[:3], order[3:]], "plain")
    monkeypatch.setattr(packing, "best_row_length", max)
    assert_same(objective, [order])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_averaging_the_means_of_the_passes_would_be_another_step(objective: Objective):
    """What trainers often do: it misses the gradient by more than a tenth of its norm, so the
    tests above can fail.
    """
    model, groups = model_and_groups(objective)
    _, gradient = whole(objective)
    scorer = Scorer(objective, ref_model=None, unwrap=lambda wrapped: wrapped)
    parts = [groups[:1], groups[1:]]
    for part in parts:
        (objective(scorer(model, pack(part, "shared", 0))).loss() / len(parts)).backward()
    assert float((adapter_gradient(model) - gradient).norm() / gradient.norm()) > 0.1


def test_in_float32_the_split_costs_no_more_than_rounding():
    """A global batch of pairs, whole and one pair at a time: 1e-6 of the norm."""
    rng = random.Random(1)
    groups = [token_group(rng, 9, [12, 7], role=[1, -1]) for _ in range(6)]
    model, objective = adapted("llama"), DPO()
    scorer = Scorer(objective, ref_model=None, unwrap=lambda wrapped: wrapped)

    def gradient(parts: Sequence[Sequence[TokenGroup]]) -> Tensor:
        for part in parts:
            counts = torch.tensor([float(len(groups))])
            objective(scorer(model, pack(part, "shared", 0))).loss(counts).backward()
        return adapter_gradient(model)

    one, six = gradient([groups]), gradient([[group] for group in groups])
    assert float((six - one).norm() / one.norm()) < 1e-6
