"""A step that does not fit is taken anew in parts and teaches the same; several end early."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from alignment.cli import UserError
from alignment.core.packing import PackedBatch
from alignment.core.planning import Plan, largest_bin
from alignment.trainers.base import GroupTrainer
from alignment.trainers.out_of_memory import split, try_largest_bin
from tests.trainers.runs import build, logged, pair_rows, run, trained_weights

SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
METRICS = ("loss", "rewards/margins", "logps/chosen", "grad_norm", "num_tokens")


class Memory:
    """Fails where a batch has more tokens than fit, before or after its backward pass."""

    def __init__(self, patch: pytest.MonkeyPatch, tokens: int, *, after: bool) -> None:
        self.tokens, self.sizes = tokens, list[int]()
        original = Trainer.training_step

        def step(trainer: Any, model: Any, batch: PackedBatch, counts: Any = None) -> Any:
            too_large = batch.num_tokens > self.tokens
            if too_large and not after:
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss = original(trainer, model, batch, counts)
            if too_large:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            self.sizes.append(batch.num_tokens)
            return loss

        patch.setattr(Trainer, "training_step", step)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> GroupTrainer:
    """Two epochs of 14 pairs, eight a step."""
    return run(tmp_path_factory.mktemp("roomy"), pair_rows(14), max_steps=4, **eight(1), **SGD)


def eight(calls: int) -> dict[str, Any]:
    return {"per_device_train_batch_size": 8 // calls, "gradient_accumulation_steps": calls}


@pytest.mark.parametrize(
    ("after", "calls", "layout"),
    [(False, 1, "auto"), (True, 2, "auto"), (True, 1, "plain")],
    ids=["forward", "second-backward", "plain"],
)
def test_a_run_that_is_out_of_memory_goes_on_and_computes_the_same(  # noqa: PLR0913
    after: bool,
    calls: int,
    layout: str,
    roomy: GroupTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.WARNING)
    room = 80 if layout == "auto" else 130
    memory = Memory(monkeypatch, room, after=after)
    trainer = run(tmp_path, pair_rows(14), max_steps=4, layout=layout, **eight(calls), **SGD)
    assert "step 1: out of memory at" in caplog.text
    budget = trainer.consumed.token_budget
    assert budget is not None
    assert f"`max_tokens_per_batch: {budget}` begins with that" in caplog.text
    assert max(memory.sizes) <= room
    for metric in METRICS[: 4 if layout == "plain" else 5]:
        expected = logged(roomy, metric)
        assert logged(trainer, metric) == pytest.approx(expected, rel=1e-5, abs=1e-6), metric
    expected_weights = trained_weights(roomy)
    difference = (trained_weights(trainer) - expected_weights).norm() / expected_weights.norm()
    assert difference < 1e-6


def test_the_smaller_budget_is_kept_by_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Memory(monkeypatch, 80, after=False)
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, **eight(1)}
    whole = run(tmp_path, **changes)
    again = build(tmp_path, **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.consumed.token_budget == whole.consumed.token_budget
    assert logged(again) == logged(whole)
    assert torch.equal(trained_weights(again), trained_weights(whole))


def test_a_group_that_does_not_fit_alone_ends_the_run_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Memory(monkeypatch, 5, after=False)
    with pytest.raises(UserError, match=r"out of memory at a single group, train\[\d+\] of \d+"):
        run(tmp_path)


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path)


@pytest.mark.parametrize("budget", [1, 40, 60, 100, 10_000])
def test_parts_keep_to_a_budget_and_lose_nothing(budget: int, roomy: GroupTrainer):
    groups = [roomy.train_dataset[i] for i in range(9)]
    parts = split(groups, budget, "shared")
    assert sorted(g.origin for part in parts for g in part) == sorted(g.origin for g in groups)
    for part in parts:
        assert len(part) == 1 or sum(group.lengths()[0] for group in part) <= budget


# ---- On several processes ----


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 2)])
def test_the_largest_bin_of_a_run_is_found(world: int, accumulation: int, roomy: GroupTrainer):
    plan = Plan(roomy.train_dataset.lengths("shared"), 6, world, accumulation, seed=3)
    bins = [
        members
        for epoch in range(3)
        for rank in range(world)
        for members in plan.bins(epoch, rank)
        if members[0] >= 0
    ]
    most = max(sum(int(plan.lengths[i]) for i in members) for members in bins)
    assert sum(int(plan.lengths[i]) for i in largest_bin(plan, 3)) == most


def test_a_step_of_the_plan_has_the_bins_of_its_epoch(roomy: GroupTrainer):
    plan = Plan(roomy.train_dataset.lengths("shared"), 6, 2, 2, seed=3)
    bins = [plan.step_bins(number, 1) for number in range(2 * plan.steps_per_epoch)]
    expected = [*plan.bins(0, 1), *plan.bins(1, 1)]
    assert [members for step in bins for members in step] == expected


def test_the_largest_bin_runs_without_teaching_anything(tmp_path: Path):
    trainer = build(tmp_path)
    before = trained_weights(trainer).clone()
    trainer.model_wrapped = trainer.model
    try_largest_bin(trainer)
    assert trainer.tokens_seen == 0
    assert torch.equal(trained_weights(trainer), before)
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_a_largest_bin_that_does_not_fit_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = build(tmp_path)
    trainer.model_wrapped = trainer.model

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GroupTrainer, "training_step", fail)
    with pytest.raises(UserError) as caught:
        try_largest_bin(trainer)
    assert "process 0 has no memory for the largest batch of the plan (" in str(caught.value)
    assert "set `max_tokens_per_batch: " in str(caught.value)
