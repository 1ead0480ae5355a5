"""The doctor finds what is broken, says how to mend it, and ends accordingly."""

import importlib.util
import json
import shutil
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from transformers import AutoTokenizer, GenerationConfig, Qwen3NextConfig

from alignment.commands import doctor
from alignment.commands.doctor import main
from alignment.diagnosis import collective, machine, versions
from alignment.diagnosis.finding import Finding
from alignment.diagnosis.model import check_layout, check_model, check_tokens
from tests.tiny import CHAT_TEMPLATE, save_tiny


def levels(findings: Any) -> dict[str, str]:
    return {finding.subject: finding.level for finding in findings}


def only(findings: Any, level: str) -> Finding:
    (found,) = [finding for finding in findings if finding.level == level]
    assert found.remedy
    return found


# ---- Versions ----


def requirement(text: str) -> list[Finding]:
    return list(versions.check_requirement(Requirement(text)))


def test_packages_are_held_against_what_the_project_asks_for():
    assert levels(requirement("numpy>=1")) == {"numpy": "ok"}
    found = only(requirement("trl>=99,<100"), "broken")
    assert "one minor version at a time" in found.told
    assert found.remedy == 'pip install "trl<100,>=99"'
    assert "is missing" in only(requirement("no-such-package>=1"), "broken").told


def test_an_extra_may_be_absent_but_not_of_another_version():
    assert requirement('no-such-package>=1; extra == "quant"') == []
    assert requirement('numpy>=1; extra == "quant"') == []
    assert levels(requirement('numpy>=99; extra == "quant"')) == {"numpy": "warning"}


def distribution(name: str, *files: str) -> Any:
    told = Message()
    told["Name"] = name
    return SimpleNamespace(metadata=told, files=[Path(file) for file in files])


@pytest.mark.parametrize(
    "other",
    [
        distribution("alignment-handbook"),
        distribution("alignment_handbook"),
        distribution("other", "alignment/__init__.py"),
    ],
    ids=lambda other: other.metadata["Name"],
)
def test_a_package_of_the_same_import_name_is_broken(other: Any, monkeypatch: pytest.MonkeyPatch):
    own = distribution("contrastive-alignment", "alignment/__init__.py")
    monkeypatch.setattr(metadata, "distributions", lambda: [own, other])
    found = only(versions.check_name(), "broken")
    assert "either of the two hides the other" in found.told
    assert found.remedy.startswith("pip uninstall ")


def test_this_environment_has_no_namesake():
    assert list(versions.check_name()) == []


# ---- Machine ----


@pytest.mark.parametrize(
    ("driver", "cuda", "level", "told"),
    [
        (True, None, "broken", "no CUDA, but this machine has an NVIDIA driver"),
        (True, "13.0", "broken", "the driver does not serve it"),
        (False, "13.0", "warning", "for CUDA 13.0, but no GPU is here"),
        (False, None, "ok", "no CUDA"),
    ],
)
def test_torch_and_driver_must_fit(
    driver: bool,
    cuda: str | None,
    level: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(machine, "has_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = next(iter(machine.check_torch()))
    assert (found.subject, found.level) == ("torch", level)
    assert told in found.told
    assert bool(found.remedy) is (level != "ok")


def gpus(monkeypatch: pytest.MonkeyPatch, *cards: tuple[str, int, float]) -> list[Finding]:
    """GPUs by name, major capability and free share of 80 GiB."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(name=cards[index][0], major=cards[index][1])

    total = 80 * 2**30
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (int(cards[i][2] * total), total))
    return list(machine.check_gpus())


def test_every_gpu_is_told_with_its_memory(monkeypatch: pytest.MonkeyPatch):
    (found,) = gpus(monkeypatch, ("H100", 9, 1.0))
    assert (found.level, found.told) == ("ok", "H100, 80.0 of 80.0 GiB free")
    assert (
        "another process holds the rest" in only(gpus(monkeypatch, ("A", 8, 0.5)), "warning").remedy
    )
    assert "no bf16" in only(gpus(monkeypatch, ("V100", 7, 1.0)), "warning").told
    mixed = only(gpus(monkeypatch, ("A", 8, 1.0), ("B", 9, 1.0)), "warning")
    assert "waits for the slowest" in mixed.told
    assert "none" in only(gpus(monkeypatch), "warning").told


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = SimpleNamespace(free=30 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert set(levels(machine.check_room(tmp_path / "new" / "runs")).values()) == {"ok"}
    usage.free = 2**30
    found = levels(machine.check_room(tmp_path / "new" / "runs"))
    assert found["disk for runs"] == found["disk for the hub's cache"] == "warning"
    monkeypatch.setattr(machine.os, "access", lambda *args: False)
    assert levels(machine.check_room(tmp_path))["disk for runs"] == "broken"


def test_optional_packages_say_what_they_need(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert levels(machine.check_extras()) == {"bitsandbytes": "warning", "deepspeed": "warning"}


# ---- Model and tokenizer ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", num_hidden_layers=1)


def change_tokenizer(model: Path, **changes: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(model)


def test_a_sound_model_has_nothing_to_mend(model: Path):
    assert set(levels(check_model(str(model))).values()) == {"ok"}


def test_a_tokenizer_without_an_end_is_broken(model: Path):
    change_tokenizer(model, eos_token=None)
    assert only(check_model(str(model)), "broken").subject == "end of sequence"


def test_a_model_without_a_chat_template_takes_plain_text_only(model: Path):
    change_tokenizer(model, chat_template=None)
    assert "cannot be trained on" in only(check_model(str(model)), "warning").told


def test_a_template_that_drops_the_system_turn_is_told(model: Path):
    head = "{% for message in messages %}"
    kept = "{% for message in messages if message.role != 'system' %}"
    change_tokenizer(model, chat_template=CHAT_TEMPLATE.replace(head, kept))
    assert "drops the system turn" in only(check_model(str(model)), "warning").told


def test_a_template_that_does_not_mark_the_end_is_broken(model: Path):
    change_tokenizer(model, chat_template=CHAT_TEMPLATE.replace("<|im_end|>", ""))
    assert "without an end-of-turn token" in only(check_model(str(model)), "broken").told


def test_an_end_of_turn_at_which_generation_does_not_stop_is_broken(model: Path):
    GenerationConfig(eos_token_id=[7]).save_pretrained(model)
    found = only(check_model(str(model)), "broken")
    assert "'<|im_end|>', at which generation does not stop" in found.told
    assert "add 2 to `eos_token_id` in generation_config.json" in found.remedy


def test_a_tokenizer_larger_than_the_model_is_broken(model: Path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = SimpleNamespace(vocab_size=10)
    config = SimpleNamespace(get_text_config=lambda: text)
    assert only(check_tokens(config, tokenizer), "broken").subject == "vocabulary"


def test_a_folder_without_safetensors_is_broken(model: Path):
    (model / "model.safetensors").unlink()
    assert only(check_model(str(model)), "broken").subject == "weights"


def test_a_model_that_cannot_share_and_one_that_is_none_are_told(tmp_path: Path):
    found = only(check_layout(Qwen3NextConfig()), "warning")
    assert "each response repeats its prompt" in found.told
    assert "no such model folder" in only(check_model(str(tmp_path / "absent")), "broken").told


# ---- The command ----


def test_processes_that_do_not_meet_are_told(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any) -> None:
        raise RuntimeError("Traceback\nconnection refused")

    monkeypatch.setattr(collective.multiprocessing, "spawn", fail)
    found = only(collective.check_all_reduce(), "broken")
    assert "connection refused" in found.told
    assert "GLOO_SOCKET_IFNAME" in found.remedy


@pytest.mark.slow
def test_two_processes_sum_a_tensor():
    (found,) = collective.check_all_reduce(2)
    assert found.level == "ok"
    assert "2 processes over " in found.told


def test_findings_end_in_a_count_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = [Finding("ok", "python", "3.11"), Finding("warning", "GPU", "none", "buy one")]
    monkeypatch.setattr(doctor, "examine", lambda options: iter(found))
    main([])
    shown = capsys.readouterr().out
    assert "warning  GPU: none\n         -> buy one\n" in shown
    assert shown.endswith("2 findings: 0 broken, 1 warnings\n")
    found.append(Finding("broken", "trl", "is missing", "pip install trl"))
    with pytest.raises(SystemExit, match="1"):
        main(["--json"])
    read = json.loads(capsys.readouterr().out)
    assert [finding["level"] for finding in read] == ["ok", "warning", "broken"]
    assert read[2]["remedy"] == "pip install trl"
