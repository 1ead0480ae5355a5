"""`alignment estimate`: exact tokens, divided memory, one line for bad input."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from alignment.cli import UserError
from alignment.commands.estimate import Options, main, memory_of, optimiser_bytes
from alignment.trainers.footprint import Footprint

FOUND = Footprint(
    weights=800.0,
    trained=40,
    trained_count=10,
    copies=200.0,
    largest=100.0,
    gradients=40,
    kept=300,
    head=50,
    peak=420,
    gradients_at_peak=40,
    operations=1000,
    head_operations=100,
)


@pytest.fixture(autouse=True)
def _own_data_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def words(folder: Path, model: Path, **changes: object) -> list[str]:
    """A recipe of 6 pairs: a prompt of one token each, responses of 2 and 3 with the end."""
    data = folder / "pairs.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "bc"}] * 6
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": model,
        "dataset_name": data,
        "use_peft": "true",
        "lora_target_modules": "all-linear",
        "use_cpu": "true",
        "global_batch_size": 3,
        "per_device_train_batch_size": 2,
        "output_dir": folder / "out",
        "report_to": "none",
        **changes,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def memory(**changes: object) -> dict[str, float]:
    return memory_of(FOUND, SimpleNamespace(optim="adamw_torch"), Options(**changes))  # type: ignore[arg-type]


def test_memory_of_one_process_adds_up():
    """800 + 200 + 40 weights, 2 x 40 states of AdamW, and the 420 of the highest moment."""
    assert memory()["total"] == 800 + 200 + 40 + 80 + 420


def test_several_processes_without_zero_keep_gradients_twice():
    assert memory(num_processes=4)["total"] == memory()["total"] + 40


def test_zero_1_divides_states():
    """Of 80 bytes of states 20 are left; gradients are whole, and not kept twice."""
    assert memory(num_processes=4, zero_stage=1)["total"] == memory()["total"] - 60


def test_zero_2_divides_gradients_and_states():
    """Of 40 bytes of gradients 10 are left, of 80 of states 20."""
    assert memory(num_processes=4, zero_stage=2)["total"] == memory()["total"] - 30 - 60


def test_zero_3_divides_weights_too_but_one_layer():
    """800 / 4 and the 100 of a layer, 200 / 4 and 40 / 4."""
    divided = memory(num_processes=4, zero_stage=3)
    assert (divided["weights"], divided["gathered"]) == (200, 100)
    assert divided["reference_and_teacher"] == 50
    assert divided["trained_weights"] == 10


def test_states_depend_on_the_optimiser():
    """10 weights of 4 bytes: AdamW keeps two numbers each, in 8 bit of one byte; SGD none."""
    names = ("adamw_torch_fused", "paged_adamw_8bit", "lion_32bit", "sgd", "adafactor")
    assert [optimiser_bytes(name, FOUND) for name in names] == [80, 20, 40, 0, 0]


def test_tokens_steps_and_seconds(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    """A group is a prompt of 1, responses of 2 and 3: 1 + 1 + 2 = 4 unique positions.

    Plain: two rows of at most 1 + 3 - 1 = 3; padded rows of TRL: two of 4.
    """
    file = tmp_path / "figures.json"
    main([*words(tmp_path, model_dir, num_train_epochs=2), "--flops=1e6", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["groups"] == 6
    assert found["tokens"] == {"unique": 24, "padded_rows": 48, "plain": 36, "shared": 24}
    assert (found["steps"], found["passes_per_step"]) == (4, 1)
    assert found["largest_pass"] == 12
    assert found["seconds_per_step"] == pytest.approx(found["operations_per_step"] / 1e6)
    assert found["seconds"] == pytest.approx(4 * found["seconds_per_step"])
    shown = capsys.readouterr().out
    assert "48 (2.00 of unique)" in shown
    assert "are estimates" in shown


def test_processes_share_the_batch(tmp_path: Path, model_dir: Path):
    file = tmp_path / "figures.json"
    argv = words(tmp_path, model_dir, global_batch_size=4)
    main([*argv, "--flops", "1e6", "--num-processes", "2", "--json", str(file)])
    assert json.loads(file.read_text())["largest_pass"] == 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_name_or_path": "absent/model"}, "absent"),
        ({"dataset_name": "absent.jsonl"}, "absent.jsonl"),
        ({"learning_rat": 1}, "did you mean `--learning_rate`"),
        ({"zero_stage": 4}, "one of 0, 1, 2, 3"),
        ({"num_processes": 0}, "at least 1"),
        ({"launcher": "zero3"}, "`--zero_stage 3` stands for ZeRO-3 or FSDP"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, model_dir: Path, changes: dict[str, object], told: str
):
    with pytest.raises(UserError, match=told):
        main(words(tmp_path, model_dir, **changes))


def test_an_unknown_model_type_is_one_line(tmp_path: Path, model_dir: Path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for file in model_dir.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(UserError, match="unheard_of"):
        main(words(tmp_path, folder))
