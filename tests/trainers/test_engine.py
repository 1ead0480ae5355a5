"""What machine and engine cannot do is said before anything is loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment.cli import UserError
from alignment.trainers import engine
from alignment.trainers.engine import check_engine


def args(**changes: Any) -> Any:
    settings = {"use_cpu": True, "bf16": False, "fp16": False, "deepspeed_plugin": None}
    return SimpleNamespace(**{**settings, **changes})


def deepspeed(**changes: Any) -> Any:
    return SimpleNamespace(deepspeed_config=changes)


def refusal(given: Any, attention: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_engine(given, attention)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_for_a_cpu_passes_on_a_cpu():
    check_engine(args())
    check_engine(args(deepspeed_plugin=deepspeed(bf16={"enabled": "auto"})), "sdpa")


def test_fsdp_on_a_cpu_is_refused_because_it_would_be_something_else(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "would run plain DDP" in refusal(args())


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "4 processes were started and this machine shows 2 GPUs" in refusal(args(use_cpu=False))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_engine(args(use_cpu=False))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_deepspeed_json_with_a_precision_that_the_cpu_lacks_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "cpu_computes_bf16", lambda: False)
    plugin = deepspeed(**{name: {"enabled": True}})
    message = refusal(args(deepspeed_plugin=plugin, **{name: True}))
    assert f"compute in {name}, which this CPU cannot" in message
    assert '{"enabled": "auto"}' in message


def test_a_deepspeed_json_with_another_precision_than_the_recipe_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(engine, "cpu_computes_bf16", lambda: True)
    plugin = deepspeed(bf16={"enabled": True})
    assert "`bf16: true` in the recipe" in refusal(args(deepspeed_plugin=plugin))
    check_engine(args(deepspeed_plugin=plugin, bf16=True))


def test_the_json_that_a_recipe_names_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`deepspeed: FILE` of the recipe ends in the plugin that is checked."""
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    monkeypatch.setattr(engine, "cpu_computes_bf16", lambda: False)
    said = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    plugin = DeepSpeedPlugin(hf_ds_config={**said, "gradient_accumulation_steps": 1})
    assert "compute in bf16" in refusal(args(deepspeed_plugin=plugin))
