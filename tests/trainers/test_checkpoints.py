"""A checkpoint is whole or not there, holds the weights of memory, and is used by its own run."""

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer

from alignment.cli import UserError
from alignment.objectives.apo import APO
from alignment.objectives.distillm2 import DistiLLM2
from alignment.objectives.sft import SFT
from alignment.trainers import checkpoints
from alignment.trainers.base import GroupTrainer
from alignment.trainers.checkpoints import MANIFEST, damage, resolve
from alignment.trainers.saved_weights import check_saved, measure
from tests.trainers.runs import (
    build,
    logged,
    lora,
    pair_rows,
    run,
    small_model,
    trained_weights,
)

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    run(folder, **SAVING)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    for path in saved.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


# ---- What a checkpoint is ----


def test_a_checkpoint_lists_its_files_and_its_run_and_holds_no_pickled_weights(saved: Path):
    assert names(saved) == ["checkpoint-2", "checkpoint-4"]
    content = json.loads((saved / "checkpoint-4" / MANIFEST).read_text())
    files = {path.name for path in (saved / "checkpoint-4").iterdir()} - {MANIFEST}
    assert set(content["files"]) == files
    assert {ADAPTER, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files
    assert content["origin"]["objective"] == repr(APO())
    assert (content["origin"]["engine"], content["origin"]["processes"]) == ("one process", 1)
    assert damage(saved / "checkpoint-4") is None
    assert not list(saved.rglob("*.bin"))


def test_averages_of_a_log_end_at_a_checkpoint_so_that_a_resumed_run_logs_the_same(
    tmp_path: Path,
):
    """Logs are due after 4 and 8 steps, checkpoints after 3 and 6."""
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 4}
    whole = run(tmp_path, max_steps=8, **changes)
    again = build(tmp_path, max_steps=8, **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in whole.state.log_history if "loss" in entry] == [3, 4, 6, 8]
    for name in ("loss", "rewards/margins", "num_tokens", "grad_norm", "learning_rate"):
        assert logged(again, name) == logged(whole, name), name
    assert torch.equal(trained_weights(again), trained_weights(whole))


def test_the_best_checkpoint_is_known_by_its_final_name(tmp_path: Path):
    changes = {"eval_dataset": pair_rows(3), "eval_strategy": "steps", "eval_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    trainer = run(tmp_path, save_total_limit=1, **SAVING, **changes, **best)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-4")
    assert names(tmp_path) == ["checkpoint-4"]


# ---- Failing while it is written ----


def failing(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    """Lets the second call of one of the base trainer's methods fail."""
    original: Callable[..., Any] = getattr(Trainer, method)
    calls = []

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, method, fail)


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("_save", SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")),
        ("_save_rng_state", OSError(errno.ENOSPC, FULL)),
    ],
    ids=["weights", "state"],
)
def test_a_disk_that_fills_up_while_saving_leaves_the_checkpoint_before_it(
    method: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        failing(patch, method, error)
        with pytest.raises(UserError) as caught:
            run(tmp_path, save_total_limit=1, **SAVING)
    message = str(caught.value)
    assert "the disk is full" in message
    last = tmp_path / "checkpoint-2"
    assert f"the last good one is {last}: `--resume_from_checkpoint {last}`" in message
    assert "\n" not in message
    assert names(tmp_path) == ["checkpoint-2"]
    trainer = build(tmp_path, save_total_limit=1, **SAVING)
    trainer.train(resume_from_checkpoint="latest")
    assert trainer.state.global_step == 4
    assert names(tmp_path) == ["checkpoint-4"]


def test_other_errors_while_saving_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failing(monkeypatch, "_save_rng_state", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path, **SAVING)
    assert names(tmp_path) == ["checkpoint-2"]


def test_what_a_crash_left_half_written_is_never_taken_for_a_checkpoint(
    copied: Path,
):
    (copied / "checkpoint-4").rename(copied / "whole")
    staged = copied / checkpoints.STAGING / "checkpoint-4"
    staged.mkdir(parents=True)
    (staged / ADAPTER).write_bytes(b"half")
    assert resolve("latest", copied) == str(copied / "checkpoint-2")
    trainer = build(copied, **SAVING)
    trainer.train(resume_from_checkpoint="latest")
    assert names(copied) == ["checkpoint-2", "checkpoint-4", "whole"]
    for name in (ADAPTER, "optimizer.pt"):
        found, expected = (copied / place / name for place in ("checkpoint-4", "whole"))
        assert found.read_bytes() == expected.read_bytes(), name


# ---- Damage ----


def truncate(folder: Path) -> str:
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:100])
    return "its file optimizer.pt has 100 bytes and was written with"


def flip(folder: Path) -> str:
    path = folder / ADAPTER
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    return f"its file {ADAPTER} is not what was written: another checksum"


def remove(folder: Path) -> str:
    (folder / "scheduler.pt").unlink()
    return "its file scheduler.pt is missing"


def unfinished(folder: Path) -> str:
    (folder / MANIFEST).unlink()
    return f"it has no {MANIFEST}, so it was not finished"


def garbled(folder: Path) -> str:
    (folder / MANIFEST).write_text("{")
    return f"its {MANIFEST} cannot be read"


def foreign(folder: Path) -> str:
    content = json.loads((folder / MANIFEST).read_text())
    del content["origin"]["engine"]
    (folder / MANIFEST).write_text(json.dumps(content))
    return f"its {MANIFEST} cannot be read, or another version wrote it"


@pytest.mark.parametrize("spoil", [truncate, flip, remove, unfinished, garbled, foreign])
def test_a_damaged_checkpoint_is_named_and_the_last_good_one_offered(
    spoil: Callable[[Path], str], copied: Path, caplog: pytest.LogCaptureFixture
):
    last, good = copied / "checkpoint-4", copied / "checkpoint-2"
    fault = spoil(last)
    trainer = build(copied, **SAVING)
    with pytest.raises(UserError) as caught:
        trainer.train(resume_from_checkpoint=str(last))
    message = str(caught.value)
    assert message.startswith(f"cannot resume from {last}: {fault}")
    assert message.endswith(f"the last good one is {good}: `--resume_from_checkpoint {good}`")
    caplog.set_level(logging.WARNING)
    assert resolve("latest", copied) == str(good)
    assert f"passing over {last}: {fault}" in caplog.text
    spoil(good)
    with pytest.raises(UserError, match=r"no other checkpoint .* is whole: start anew in another"):
        resolve("latest", copied)


def test_the_latest_is_of_the_run_that_was_started_last(copied: Path):
    """A run over another one that ends early leaves checkpoints of higher steps behind it."""
    assert resolve("latest", copied) == str(copied / "checkpoint-4")
    run(copied, max_steps=2, **SAVING)
    assert names(copied) == ["checkpoint-2", "checkpoint-4"]
    assert resolve("latest", copied) == str(copied / "checkpoint-2")
    for step, name in enumerate(("checkpoint-2", "checkpoint-4")):
        os.utime(copied / name, (step, step))  # a copy may have any times
    assert resolve("latest", copied) == str(copied / "checkpoint-2")


def test_where_there_is_no_checkpoint_the_latest_is_none(tmp_path: Path):
    assert resolve("latest", tmp_path) is None
    assert resolve(None, tmp_path) is None
    with pytest.raises(UserError, match=r"no such folder: .*absent; .* holds no other checkpoint"):
        resolve(str(tmp_path / "absent"), tmp_path)


def test_weights_alone_are_not_resumed(tmp_path: Path):
    run(tmp_path, save_only_model=True, **SAVING)
    fault = damage(tmp_path / "checkpoint-4")
    assert fault is not None
    assert "it holds weights alone (`save_only_model`)" in fault


# ---- Another run ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": APO(beta=0.2)}, r"its objective was APO\(.*beta=0.1.*here it is .*beta=0.2"),
        ({"full": True}, "its trained part was adapter, here it is model"),
        ({"rows": pair_rows(14)}, "it was trained on 12 and now 14 groups: give it the same data"),
        ({"rows": pair_rows(13)[1:]}, "it was trained on other rows of data"),
        ({"per_device_train_batch_size": 2}, "its batch size was 4, here it is 2"),
        ({"seed": 1}, "its seed was 42, here it is 1"),
        (
            {"model": small_model(seed=1)},
            "it was trained with other weights than `model_name_or_path` has here: name the model",
        ),
    ],
    ids=["objective", "part", "more", "other", "batch", "seed", "model"],
)
def test_a_checkpoint_of_another_run_is_refused(changes: dict[str, Any], message: str, saved: Path):
    trainer = build(saved, **SAVING, **changes)
    with pytest.raises(UserError, match=message) as caught:
        trainer.train(resume_from_checkpoint="latest")
    assert str(caught.value).startswith(f"{saved / 'checkpoint-4'} is no checkpoint of this run")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_number_of_processes_is_refused_and_a_fitting_one_offered(
    copied: Path,
):
    path = copied / "checkpoint-4" / MANIFEST
    content = json.loads(path.read_text())
    content["origin"] |= {"processes": 2, "engine": "ddp"}
    path.write_text(json.dumps(content))
    trainer = build(copied, **SAVING)
    with pytest.raises(UserError) as caught:
        trainer.train(resume_from_checkpoint="latest")
    assert "its engine was ddp, here it is one process: start it as it was" in str(caught.value)
    assert f"one that fits is {copied / 'checkpoint-2'}" in str(caught.value)


@pytest.mark.parametrize("role", ["ref_model", "teacher_model", "model"])
def test_another_frozen_model_than_that_of_the_checkpoint_is_refused(role: str, tmp_path: Path):
    """A whole model is read from the checkpoint, its reference is not."""
    changes: dict[str, Any] = {"full": True, "save_strategy": "steps", "save_steps": 2}
    if role == "teacher_model":
        changes["objective"] = DistiLLM2()
    run(tmp_path, **changes, **{role: small_model(seed=1)})
    other = build(tmp_path, **changes, **{role: small_model(seed=2)})
    with pytest.raises(UserError, match=f"other weights than `{role}_name_or_path` has here"):
        other.train(resume_from_checkpoint="latest")


def test_a_checkpoint_is_resumed_in_another_precision(tmp_path: Path):
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    run(tmp_path, **changes)
    again = build(tmp_path, model=small_model(dtype=torch.bfloat16), **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 4


def test_without_a_reference_a_whole_model_may_be_built_of_any_weights(tmp_path: Path):
    """The checkpoint holds all that is trained."""
    changes: dict[str, Any] = {"objective": SFT(), "full": True, **SAVING}
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pair_rows(12)]
    whole = run(tmp_path, rows, **changes)
    again = build(tmp_path, rows, model=small_model(seed=1), **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(trained_weights(again), trained_weights(whole))


def test_other_data_are_gone_on_with_where_that_is_asked_for(copied: Path):
    trainer = build(copied, pair_rows(14), ignore_data_skip=True, max_steps=5, **SAVING)
    trainer.train(resume_from_checkpoint="latest")
    assert trainer.state.global_step == 5


# ---- What was saved is what memory holds ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> GroupTrainer:
    trainer = run(tmp_path_factory.mktemp("trained"), max_steps=2)
    trainer.save_model()
    return trainer


Spoil = Callable[[dict[str, torch.Tensor], str], None]


def emptied(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.empty(0)


def zeroed(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].zero_()


def halved(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:1].clone()


def not_numbers(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name][0, 0] = torch.nan


def older(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].mul_(0.99)


def dropped(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def all_dropped(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (emptied, r"has shape \(0,\)"),
        (zeroed, "is all zeros, in memory it is not"),
        (halved, r"has shape \(1, 4\), in memory \(32, 4\)"),
        (not_numbers, "holds NaN or infinity"),
        (older, "sums to .*, in memory to"),
        (dropped, "1 weights are missing from what was saved"),
        (all_dropped, "nothing was saved"),
    ],
)
def test_an_adapter_that_is_not_what_memory_holds_is_an_error(
    spoil: Spoil, message: str, trained: GroupTrainer, tmp_path: Path
):
    expected = measure(trained.model, trained.accelerator)
    tensors = load_file(Path(trained.args.output_dir) / ADAPTER)
    assert tensors.keys() == expected.keys()
    name = next(name for name in tensors if "lora_B" in name)
    save_file(tensors, tmp_path / ADAPTER)
    check_saved(tmp_path, expected, learned=True)
    spoil(tensors, name)
    save_file(tensors, tmp_path / ADAPTER)
    with pytest.raises(UserError, match=message) as caught:
        check_saved(tmp_path, expected, learned=True)
    assert "\n" not in str(caught.value)


def test_a_save_that_writes_zeros_fails_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = run(tmp_path, max_steps=2)
    trainer.save_model()
    before = (tmp_path / ADAPTER).read_bytes()
    original = Trainer._save

    def zeros(self: Any, output_dir: str, state_dict: Any = None) -> None:
        original(self, output_dir, state_dict)
        path = Path(output_dir) / ADAPTER
        save_file({n: torch.zeros_like(t) for n, t in load_file(path).items()}, path)

    monkeypatch.setattr(Trainer, "_save", zeros)
    with pytest.raises(UserError, match="is all zeros, in memory it is not; nothing was replaced"):
        trainer.save_model()
    assert (tmp_path / ADAPTER).read_bytes() == before
    assert not (tmp_path / ".written").exists()


def test_a_model_that_is_saved_over_an_earlier_run_loads_without_anything_of_that(tmp_path: Path):
    run(tmp_path, max_steps=2).save_model()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.bin"):
        (tmp_path / name).write_text("of an earlier run")
    trainer = run(tmp_path, full=True, max_steps=2)
    trainer.save_model()
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(found, "peft_config")
    assert torch.equal(found.lm_head.weight, trainer.model.lm_head.weight)
    left = {path.name for path in tmp_path.glob("*model*")} | {
        p.name for p in tmp_path.glob("*.bin")
    }
    assert left == {"model.safetensors", "notes.bin"}


def test_an_adapter_that_is_saved_into_the_folder_of_its_base_leaves_the_base(tmp_path: Path):
    small_model().save_pretrained(tmp_path)
    (tmp_path / "adapter_model.bin").write_text("of an earlier run")
    run(tmp_path, model=str(tmp_path), max_steps=2).save_model()
    left = {path.name for path in tmp_path.glob("*model*")}
    assert left == {"model.safetensors", ADAPTER}


def test_a_fresh_adapter_may_be_saved_and_one_that_learnt_nothing_may_not(tmp_path: Path):
    """The second factor of a fresh LoRA is zero, and so is one that no gradient has reached."""
    trainer = build(tmp_path)
    trainer.save_model()
    tensors = load_file(tmp_path / ADAPTER)
    assert not any(bool(t.any()) for name, t in tensors.items() if "lora_B" in name)
    trainer.state.log_history.append({"learning_rate": 0.1, "step": 0})
    with pytest.raises(UserError, match="still the one that changes nothing"):
        trainer.save_model()
    for name, parameter in trainer.model.named_parameters():
        if "lora_A" in name:
            parameter.data.zero_()
    with pytest.raises(
        UserError, match=r"`.*lora_A.*` is all zeros, so that nothing can be learnt"
    ):
        trainer.save_model()


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_of_a_whole_model_is_read_back(tied: bool, tmp_path: Path):
    model = small_model(tie_word_embeddings=tied)
    trainer = run(tmp_path, model=model, full=True, max_steps=1)
    trainer.save_model()
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert ("lm_head.weight" in tensors) != tied
    expected = measure(trainer.model, trainer.accelerator)
    check_saved(tmp_path, expected, learned=True)
    tensors["model.norm.weight"].mul_(0.9)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"the saved weight `model.norm.weight` sums to"):
        check_saved(tmp_path, expected, learned=True)


@pytest.mark.parametrize(("init", "dora"), [("pissa", False), ("olora", True)])
def test_other_kinds_of_adapters_are_read_back_as_well(init: str, dora: bool, tmp_path: Path):
    config = lora(init_lora_weights=init, use_dora=dora, modules_to_save=["norm"])
    trainer = run(tmp_path, peft_config=config, max_steps=2)
    trainer.save_model()
    expected = measure(trainer.model, trainer.accelerator)
    assert expected.keys() == load_file(tmp_path / ADAPTER).keys()
