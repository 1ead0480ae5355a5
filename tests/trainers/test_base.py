"""A run computes what its recipe says, starts only where policy equals reference, and resumes."""

import json
import logging
import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, Lfm2Config

from alignment.cli import UserError
from alignment.core import scoring
from alignment.core.packing import PackedBatch, pack
from alignment.core.scoring import REFERENCE_ADAPTER
from alignment.objectives.apo import APO
from alignment.objectives.base import GroupTerms
from alignment.objectives.distillm2 import DistiLLM2
from alignment.objectives.dpo import DPO
from alignment.trainers import start
from alignment.trainers.base import GroupTrainer
from tests.tiny import EOS_ID, PAD_ID, VOCAB_SIZE, tiny_tokenizer
from tests.trainers.runs import (
    build,
    logged,
    lora,
    pair_rows,
    run,
    scored,
    settings,
    small_model,
    trained_weights,
    whole_batch,
)

EXACT = 1e-6
Run = Callable[..., GroupTrainer]


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has been trained for two steps."""
    folder = tmp_path_factory.mktemp("adapter")
    run(folder, max_steps=2).save_model()
    return folder


def continued(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(small_model(), folder, is_trainable=True)


def metrics_file(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- The first step ----


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_the_first_step_shows_that_the_policy_is_the_reference(
    full: bool, stored: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Every source of a reference: adapter off, frozen copy, stored values with either."""
    kwargs = {"precompute_ref_log_probs": stored, "ref_cache_dir": str(tmp_path / "ref")}
    trainer = run(tmp_path, full=full, max_steps=2, **kwargs)
    assert (trainer.scorer.ref_model is not None) == (full and not stored)
    assert "preflight passed" in caplog.text
    assert "expected 1.0000" in caplog.text
    first, second = trainer.state.log_history[:2]
    assert first["loss"] == pytest.approx(1.0, abs=EXACT)
    assert first["logratios/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert abs(second["logratios/chosen"]) > 1e-4


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(DPO(), math.log(2)), (APO(variant="zero"), 1.0), (APO(variant="down"), 1.0)],
)
def test_the_first_loss_is_what_the_objective_predicts(
    objective: Any, expected: float, tmp_path: Path
):
    trainer = run(tmp_path, objective=objective, max_steps=1)
    assert logged(trainer) == pytest.approx([expected], abs=EXACT)


def test_the_frozen_copy_stays_where_training_started(tmp_path: Path):
    model = small_model()
    before = [p.clone() for p in model.parameters()]
    trainer = run(tmp_path, model=model, full=True)
    frozen = trainer.scorer.ref_model
    assert frozen is not None
    assert all(map(torch.equal, before, frozen.parameters()))
    assert not torch.equal(before[-1], list(model.parameters())[-1])


def test_an_adapter_that_is_not_fresh_stops_the_run_before_it_trains(tmp_path: Path):
    trainer = build(tmp_path, peft_config=lora(init_lora_weights=False))
    before = trained_weights(trainer).clone()
    with pytest.raises(UserError, match=r"preflight: .*log-ratio is .*the adapter is not fresh"):
        trainer.train()
    assert torch.equal(trained_weights(trainer), before)
    assert trainer.state.global_step == 0
    assert not list(tmp_path.iterdir())


def test_preflight_can_be_switched_off(tmp_path: Path):
    trainer = run(tmp_path, peft_config=lora(init_lora_weights=False), preflight=False, max_steps=1)
    assert abs(logged(trainer, "logratios/chosen")[0]) > 1e-3


@dataclass(frozen=True)
class _Lying(APO):
    def initial_loss(self, terms: GroupTerms) -> float:
        return 2.0


def test_a_first_loss_that_is_not_the_predicted_one_stops_the_run(tmp_path: Path):
    trainer = build(tmp_path, objective=_Lying())
    with pytest.raises(UserError, match=r"first loss is 1\.000000, .* must be 2\.000000"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_continued_adapter_is_compared_with_a_frozen_copy_of_itself(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = build(tmp_path, model=continued(adapter), full=True)
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(4)))
    begun = scored(continued(adapter), batch)
    trainer.train()
    assert "preflight passed" in caplog.text
    assert logged(trainer)[0] == pytest.approx(1.0, abs=EXACT)
    torch.testing.assert_close(
        trainer.scorer.reference_logps(trainer.model, batch), begun, rtol=0, atol=1e-6
    )
    assert not torch.allclose(scored(trainer.model, batch), begun, atol=1e-4)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_the_reference_of_an_adapter_that_moves_the_base_is_a_copy_of_the_fresh_adapter(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    untouched = small_model()
    trainer = build(tmp_path, model=small_model(), peft_config=lora(init_lora_weights=kind))
    assert f"adapter initialisation `{kind}` changes the base model" in caplog.text
    trainer.train()
    assert "preflight passed" in caplog.text
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(6)))
    reference = trainer.scorer.reference_logps(trainer.model, batch)
    torch.testing.assert_close(reference, scored(untouched, batch), rtol=0, atol=1e-5)
    assert not torch.allclose(scored(trainer.model, batch), reference, atol=1e-4)


def test_another_model_as_reference_skips_the_preflight(
    model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = run(tmp_path, ref_model=str(model_dir), max_steps=1)
    assert "preflight: skipped, the recipe names another model as reference" in caplog.text
    assert abs(logged(trainer, "logratios/chosen")[0]) > 1e-3


# ---- Layout ----


def test_both_layouts_give_the_same_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    auto, plain = run(tmp_path / "auto"), run(tmp_path / "plain", layout="plain")
    assert "layout ragged: every layer takes a custom mask, and none is padded" in caplog.text
    assert "layout plain: the recipe asks for it" in caplog.text
    assert logged(auto) == pytest.approx(logged(plain), abs=1e-5)
    assert logged(auto, "num_tokens")[-1] < logged(plain, "num_tokens")[-1]


def no_attention() -> Any:
    """A model with a layer that carries state along the row."""
    config = Lfm2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
    )
    return AutoModelForCausalLM.from_config(config)


def test_a_model_that_cannot_share_takes_the_plain_layout_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = run(tmp_path, model=no_attention(), max_steps=1)
    assert "layout plain: its layers of type conv carry state along the row" in caplog.text
    assert logged(trainer)[0] == pytest.approx(1.0, abs=EXACT)


def test_insisting_on_a_layout_that_is_not_possible_names_the_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"layout: shared is not possible .* set `layout: plain`"):
        build(tmp_path, model=no_attention(), layout="shared")


def test_a_shared_layout_that_computes_something_else_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    plain = run(tmp_path / "plain", layout="plain")
    monkeypatch.setattr(start, "layout_difference", lambda *_: 0.5)
    auto = run(tmp_path / "auto")
    assert "layout plain: shared and plain layout differ by 0.5 nats" in caplog.text
    assert logged(auto) == pytest.approx(logged(plain), abs=1e-5)
    trainer = build(tmp_path / "shared", layout="shared")
    with pytest.raises(UserError, match=r"layout: shared is wrong here: .* set `layout: plain`"):
        trainer.train()


def test_a_frozen_model_is_asked_for_the_layout_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    trainer = run(tmp_path / "unable", ref_model=no_attention(), max_steps=1)
    assert trainer.layout == "plain"
    assert "layout plain: its layers of type conv carry state along the row" in caplog.text
    trainer = build(tmp_path / "wrong", ref_model=small_model(seed=1), max_steps=1)
    monkeypatch.setattr(
        start, "layout_difference", lambda model, *_: 0.5 * (model is trainer.scorer.ref_model)
    )
    trainer.train()
    told = "layout plain: shared and plain layout of the reference differ by 0.5 nats"
    assert told in caplog.text


def test_a_head_that_does_more_than_is_known_stops_the_run(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """A model that halves its logits in its own forward, and says so nowhere."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    original = type(model).forward

    def halved(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(type(model), "forward", halved)
    with pytest.raises(UserError, match="the architecture does more to its logits"):
        run(tmp_path, model=model, max_steps=1)


def test_a_difference_that_is_no_number_counts_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start, "layout_difference", lambda *_: math.nan)
    assert run(tmp_path, max_steps=1).layout == "plain"


# ---- The effective batch ----


@pytest.fixture(scope="module")
def whole_steps(tmp_path_factory: pytest.TempPathFactory) -> GroupTrainer:
    """Two epochs of 14 pairs, 8 of them per step in one call; the last step of an epoch has 6."""
    return run(tmp_path_factory.mktemp("whole"), pair_rows(14), **two_epochs())


def two_epochs(**changes: Any) -> dict[str, Any]:
    sgd = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
    epochs = {"num_train_epochs": 2, "max_steps": -1, "global_batch_size": 8}
    return {"per_device_train_batch_size": 8, **sgd, **epochs, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 8},
        {"max_tokens_per_batch": 200},
        {"max_tokens_per_batch": 60},
        {"max_tokens_per_batch": 1},
        {"global_batch_size": None, "gradient_accumulation_steps": 1},
    ],
    ids=str,
)
def test_the_split_of_a_batch_changes_neither_loss_nor_weights(
    changes: dict[str, Any], whole_steps: GroupTrainer, tmp_path: Path
):
    """With 8 calls for the 6 pairs of the last step, two calls are fillers."""
    trainer = run(tmp_path, pair_rows(14), **two_epochs(**changes))
    assert trainer.state.global_step == 4
    assert logged(trainer) == pytest.approx(logged(whole_steps), abs=EXACT)
    for name in ("rewards/margins", "logps/chosen", "grad_norm"):
        assert logged(trainer, name) == pytest.approx(logged(whole_steps, name), rel=1e-5, abs=1e-6)
    expected = trained_weights(whole_steps)
    difference = (trained_weights(trainer) - expected).norm() / expected.norm()
    assert difference < EXACT


def test_a_token_budget_chooses_the_accumulation(tmp_path: Path):
    few, many = (
        build(tmp_path, pair_rows(14), **two_epochs(max_tokens_per_batch=budget))
        for budget in (150, 60)
    )
    assert 1 < few.plan.accumulation < many.plan.accumulation <= 8
    groups = many.train_dataset
    for members in many.plan.bins(0, 0):
        assert sum(groups[i].lengths()[0] for i in members if i >= 0) <= 60


def test_every_step_computes_the_groups_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = build(tmp_path, pair_rows(10), num_train_epochs=2, max_steps=-1)
    seen: dict[int, set[str]] = {}
    compute = trainer.compute_loss

    def spy(model: Any, inputs: PackedBatch, **kwargs: Any) -> Any:
        if inputs.real:
            seen.setdefault(trainer.state.global_step, set()).update(inputs.origins)
        return compute(model, inputs, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", spy)
    trainer.train()
    steps = [step for epoch in (0, 1) for step in trainer.plan.steps(epoch)]
    expected = [{f"train[{index}]" for index in step} for step in steps]
    assert list(seen.values()) == expected
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert set().union(*expected[:3]) == set().union(*expected[3:])
    assert expected[:3] != expected[3:]


def test_incomplete_steps_can_be_dropped(tmp_path: Path):
    trainer = run(
        tmp_path, pair_rows(10), num_train_epochs=2, max_steps=-1, dataloader_drop_last=True
    )
    assert trainer.state.global_step == 4


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch(tmp_path: Path):
    trainer = run(tmp_path, pair_rows(10), max_steps=5)
    assert trainer.state.global_step == 5
    assert logged(trainer, "epoch")[-1] == pytest.approx(1 + 2 / 3)


def test_processes_that_read_ahead_change_nothing(tmp_path: Path):
    own = run(tmp_path / "own", max_steps=2)
    workers = run(tmp_path / "workers", max_steps=2, dataloader_num_workers=1)
    assert logged(own) == logged(workers)


# ---- Stored references ----


@pytest.fixture
def reference_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The origins of every batch that the reference computes from here on."""
    calls: list[tuple[str, ...]] = []
    original = scoring.policy_logps

    def counted(model: Any, batch: PackedBatch) -> Tensor:
        calls.append(batch.origins)
        return original(model, batch)

    monkeypatch.setattr(scoring, "policy_logps", counted)
    monkeypatch.setattr(start, "policy_logps", counted)
    return calls


def entries(folder: Path) -> dict[bytes, tuple[bytes, int]]:
    """Everything in the only store of a folder."""
    (path,) = folder.glob("*.sqlite")
    with sqlite3.connect(path) as database:
        return {key: rest for key, *rest in database.execute("SELECT * FROM entries")}


@pytest.mark.parametrize("full", [False, True])
def test_a_stored_reference_is_computed_once_and_by_row(
    full: bool,
    tmp_path: Path,
    reference_calls: list[tuple[str, ...]],
    caplog: pytest.LogCaptureFixture,
):
    rows = pair_rows(12)
    kwargs = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path), "full": full}
    first = run(tmp_path / "1", rows, **kwargs)
    assert sorted(reference_calls) == sorted((f"train[{i}]",) for i in range(12))
    reference_calls.clear()
    again = run(tmp_path / "2", list(reversed(rows)), eval_dataset=rows[:3], seed=7, **kwargs)
    again.evaluate()
    assert reference_calls == []
    rows[5] = {**rows[5], "chosen": " something else"}
    run(tmp_path / "3", rows, **kwargs)
    assert reference_calls == [("train[5]",)]
    (store,) = tmp_path.glob("*.sqlite")
    for stored, computed in ((0, 12), (12, 0), (11, 1)):
        told = f"reference: {stored} rows are stored in {store}, {computed} are computed now"
        assert told in caplog.text
    fresh = run(tmp_path / "4", full=full)
    assert logged(first) == pytest.approx(logged(fresh), abs=1e-5)


def test_an_interrupted_fill_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference_calls: list[tuple[str, ...]]
):
    kwargs: dict[str, Any] = {"precompute_ref_log_probs": True, "max_steps": 1}
    run(tmp_path, ref_cache_dir=str(tmp_path / "whole"), **kwargs)
    reference_calls.clear()
    monkeypatch.setattr(start, "_ENTRIES_PER_WRITE", 4)
    kwargs["ref_cache_dir"] = str(tmp_path / "parts")
    counted = scoring.policy_logps

    def interrupted(model: Any, batch: PackedBatch) -> Tensor:
        if len(reference_calls) == 6:
            raise KeyboardInterrupt
        return counted(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "policy_logps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **kwargs)
    assert len(entries(tmp_path / "parts")) == 4
    reference_calls.clear()
    run(tmp_path, **kwargs)
    assert len(reference_calls) == 12 - 4
    assert entries(tmp_path / "parts") == entries(tmp_path / "whole")


def test_a_store_that_loses_what_is_written_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start.ReferenceStore, "put", lambda *_: None)
    trainer = build(tmp_path, precompute_ref_log_probs=True, ref_cache_dir=str(tmp_path / "ref"))
    with pytest.raises(UserError, match=r"does not keep what is written to it: name another"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_another_model_has_a_store_of_its_own(tmp_path: Path):
    kwargs = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "ref")}
    for seed in (0, 1):
        run(tmp_path, model=small_model(seed=seed), max_steps=1, **kwargs)
    assert len(list((tmp_path / "ref").glob("*.sqlite"))) == 2


# ---- Resuming ----


def resumed(folder: Path, checkpoint: int, rows: Any = None, **changes: Any) -> GroupTrainer:
    trainer = build(folder, rows, **changes)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{checkpoint}"))
    return trainer


@pytest.mark.parametrize("checkpoint", [2, 4])
@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, {"full": True}],
    ids=["adapter", "accumulated", "full"],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    changes: dict[str, Any], checkpoint: int, tmp_path: Path
):
    """Ten pairs make three steps an epoch, so one checkpoint lies in each epoch."""
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, **changes}
    whole = run(tmp_path, pair_rows(10), **changes)
    written = metrics_file(tmp_path)
    again = resumed(tmp_path, checkpoint, pair_rows(10), **changes)
    assert logged(again) == logged(whole)
    assert torch.equal(trained_weights(again), trained_weights(whole))
    assert again.state.global_step == 6
    repeated = metrics_file(tmp_path)
    losses = [(line["step"], line["loss"]) for line in repeated if "loss" in line]
    assert losses == [(line["step"], line["loss"]) for line in written if "loss" in line]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]


def test_a_resumed_continued_adapter_keeps_its_reference(adapter: Path, tmp_path: Path):
    changes = {"save_strategy": "steps", "save_steps": 2, "full": True}
    whole = run(tmp_path, model=continued(adapter), **changes)
    again = resumed(tmp_path, 2, model=continued(adapter), **changes)
    assert logged(again) == logged(whole)
    assert logged(again, "rewards/chosen") == logged(whole, "rewards/chosen")


def test_the_state_of_an_objective_is_restored(tmp_path: Path):
    """The anchors are averaged over the first two steps and steer every later one."""
    changes: dict[str, Any] = {
        "objective": DistiLLM2(anchor_steps=2),
        "teacher_model": small_model(seed=1),
        "save_strategy": "steps",
        "save_steps": 3,
        "max_steps": 6,
    }
    whole = run(tmp_path, **changes)
    states = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    saved = states["stateful_callbacks"]["ObjectiveState"]["attributes"]["values"]
    assert set(saved) == {"anchors/chosen", "anchors/rejected"}
    again = resumed(tmp_path, 3, **changes)
    assert again._state.values == whole._state.values == saved
    assert logged(again) == logged(whole)
    assert logged(again, "skews/chosen") == logged(whole, "skews/chosen")


def test_a_resumed_run_without_its_stored_reference_says_so(tmp_path: Path):
    changes: dict[str, Any] = {"full": True, "precompute_ref_log_probs": True, "max_steps": 2}
    changes |= {"save_strategy": "steps", "save_steps": 1}
    run(tmp_path, ref_cache_dir=str(tmp_path / "one"), **changes)
    with pytest.raises(UserError, match=r"12 rows have no stored reference .* start anew"):
        resumed(tmp_path, 1, ref_cache_dir=str(tmp_path / "two"), **changes)


def test_a_resumed_model_finds_the_reference_that_was_stored_before_its_first_step(tmp_path: Path):
    """A model that was passed in has no name, and the weights that resuming brings are others."""
    changes: dict[str, Any] = {"full": True, "precompute_ref_log_probs": True}
    changes |= {"save_strategy": "steps", "save_steps": 2, "ref_cache_dir": str(tmp_path / "ref")}
    whole = run(tmp_path, **changes)
    again = resumed(tmp_path, 2, **changes)
    assert logged(again) == logged(whole)
    assert len(list((tmp_path / "ref").glob("*.sqlite"))) == 1


# ---- Evaluation ----


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_is_exact_whatever_its_batch_size(size: int, tmp_path: Path):
    rows = pair_rows(20)[12:]
    trainer = run(tmp_path, eval_dataset=rows, per_device_eval_batch_size=size)
    metrics = trainer.evaluate()
    groups = [trainer.eval_dataset[i] for i in range(len(rows))]
    batch = pack(groups, "plain", PAD_ID)
    with scoring.evaluating(trainer.model), torch.no_grad():
        output = trainer.objective(trainer.scorer(trainer.model, batch))
    assert metrics["eval_loss"] == pytest.approx(float(output.loss()), abs=1e-6)
    rewards = output.parts["rewards"].view(-1, 2)
    accuracy = float((rewards[:, 0] > rewards[:, 1]).float().mean())
    margin = float((rewards[:, 0] - rewards[:, 1]).mean())
    assert metrics["eval_rewards/accuracies"] == accuracy
    assert metrics["eval_rewards/margins"] == pytest.approx(margin, abs=1e-6)


def test_evaluation_keeps_to_the_budget_of_a_forward_pass(tmp_path: Path):
    whole, bounded = (
        build(tmp_path, eval_dataset=pair_rows(9), max_tokens_per_batch=budget)
        for budget in (None, 100)
    )
    sizes = [batch.num_tokens for batch in bounded.get_eval_dataloader()]
    assert max(sizes) <= 100 < max(batch.num_tokens for batch in whole.get_eval_dataloader())
    metrics = [trainer.evaluate() for trainer in (whole, bounded)]
    names = ("eval_loss", "eval_rewards/margins", "eval_logps/chosen")
    for name in names:
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-6)


def test_several_evaluation_sets_are_reported_by_name(tmp_path: Path):
    rows = pair_rows(16)
    sets = {"near": rows[:3], "far": rows[12:]}
    trainer = run(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=2)
    for name, subset in sets.items():
        alone = trainer.evaluate(build(tmp_path, subset).train_dataset)
        found = logged(trainer, f"eval_{name}_loss")
        assert len(found) == 2
        assert found[-1] == pytest.approx(alone["eval_loss"], abs=1e-6)


def test_evaluation_between_steps_does_not_disturb_training(tmp_path: Path):
    quiet = run(tmp_path / "quiet")
    evaluated = run(
        tmp_path / "eval", eval_dataset=pair_rows(3), eval_strategy="steps", eval_steps=1
    )
    assert logged(evaluated) == logged(quiet)
    assert logged(evaluated, "rewards/margins") == logged(quiet, "rewards/margins")


# ---- Saving ----


@pytest.mark.parametrize("init", [True, "pissa", "olora"])
def test_a_saved_adapter_gives_the_same_log_probs_on_the_base_model(init: Any, tmp_path: Path):
    trainer = run(tmp_path, peft_config=lora(init_lora_weights=init))
    trainer.save_model()
    assert not (tmp_path / REFERENCE_ADAPTER).exists()
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(6)))
    loaded = PeftModel.from_pretrained(small_model(), tmp_path)
    torch.testing.assert_close(
        scored(loaded, batch), scored(trainer.model, batch), rtol=0, atol=1e-5
    )


def test_the_frozen_copy_of_an_adapter_is_not_saved(adapter: Path, tmp_path: Path):
    trainer = run(
        tmp_path, model=continued(adapter), full=True, save_strategy="steps", save_steps=4
    )
    trainer.save_model()
    assert REFERENCE_ADAPTER in trainer.model.peft_config
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / REFERENCE_ADAPTER).exists()
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(6)))
    loaded = PeftModel.from_pretrained(small_model(), tmp_path)
    torch.testing.assert_close(scored(loaded, batch), scored(trainer.model, batch))


def test_a_fully_trained_model_is_saved_and_loads_as_any_other(tmp_path: Path):
    trainer = run(tmp_path, full=True)
    trainer.save_model()
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(6)))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(scored(loaded, batch), scored(trainer.model, batch))
    assert (tmp_path / "tokenizer.json").is_file()


# ---- What is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": DistiLLM2()}, "DistiLLM2 needs a teacher: set `teacher_model_name_or_path`"),
        ({"rows": [{"prompt": "a", "completion": "b"}]}, "no row can be used: .*lacks_pairs"),
        ({"rows": []}, "no row can be used: the data has no row"),
    ],
    ids=["teacher", "labels", "empty"],
)
def test_what_does_not_fit_the_objective_is_refused_before_the_model_is_touched(
    changes: Mapping[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path, **{"model": "no-such-model", **changes})
    assert "\n" not in str(caught.value)


def test_a_reference_that_is_the_policy_itself_is_refused(tmp_path: Path):
    model = small_model()
    with pytest.raises(UserError, match="`ref_model` is the policy itself"):
        build(tmp_path, model=model, ref_model=model, full=True)


def test_a_filler_counts_for_nothing(tmp_path: Path):
    trainer = build(tmp_path)
    batch = whole_batch(trainer, [trainer.train_dataset[0]])
    assert trainer.scorer.counts(batch).tolist() == [1.0]
    assert trainer.scorer.counts(replace(batch, real=False)).tolist() == [0.0]
    loss = trainer.compute_loss(trainer.model, replace(batch, real=False))
    loss.backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in trainer.model.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and not g.any() for g in gradients)


def test_a_token_that_the_model_does_not_have_is_told_with_its_row(tmp_path: Path):
    """The last token of a response is no input, so that no lookup would fail."""
    tokenizer, rows = tiny_tokenizer(), pair_rows(12)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|over|>"})
    models = small_model(vocab_size=size), small_model(vocab_size=size + 1)
    told = rf"train\[0\] holds token {size} \(`<\|over\|>`\), and the model has {size} tokens"
    with pytest.raises(UserError, match=told):
        GroupTrainer(models[0], settings(tmp_path), rows, processing_class=tokenizer)
    GroupTrainer(models[1], settings(tmp_path), rows, processing_class=tokenizer)


def test_rows_that_change_the_rotations_of_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24}
    config = {"rope_parameters": {**rope, **factors}}
    build(tmp_path, model=small_model(**config))
    assert "rows of more than 24 tokens (the longest has" in caplog.text
    assert "`max_length: 24` leaves them out" in caplog.text
    caplog.clear()
    build(tmp_path, model=small_model(**config), max_length=24)
    build(tmp_path)
    assert "rotations" not in caplog.text


def test_workers_that_make_batches_are_those_of_the_settings(tmp_path: Path):
    workers: dict[str, Any] = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3}
    trainer = build(tmp_path, **workers, dataloader_persistent_workers=True)
    loader = trainer.get_train_dataloader()
    assert (loader.prefetch_factor, loader.persistent_workers) == (3, True)
    alone = build(tmp_path).get_train_dataloader()
    found = [batch.input_ids for batch in loader]
    assert all(map(torch.equal, found, (batch.input_ids for batch in alone)))
