"""What runs beside the steps: the metrics file, the progress bar, reports, an objective's state."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback

from alignment.trainers import callbacks
from alignment.trainers.callbacks import MetricsFile, ObjectiveState, ProgressLines, log_line
from tests.trainers.runs import build, logged, run

CONTROL = SimpleNamespace()


def state(step: int, **changes: Any) -> TrainerState:
    return TrainerState(global_step=step, is_world_process_zero=True, **changes)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- The metrics file ----


def test_every_log_of_a_run_is_a_line_under_trls_names(tmp_path: Path):
    trainer = run(tmp_path, max_steps=3)
    rows = lines(tmp_path / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["loss"] for row in steps] == logged(trainer)
    expected = {
        *("loss", "grad_norm", "learning_rate", "num_tokens", "epoch"),
        *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
        *(f"logps{kind}/{side}" for kind in ("", "_per_token") for side in ("chosen", "rejected")),
        *(f"logratios/{side}" for side in ("chosen", "rejected")),
    }
    for row in steps:
        assert expected <= set(row)
    assert "train_runtime" in rows[-1]


def test_tokens_are_counted_over_the_run(tmp_path: Path):
    """Twelve pairs in steps of four: the fourth step begins the second epoch."""
    trainer = run(tmp_path)
    lengths = trainer.train_dataset.lengths("shared")
    first = [sum(lengths[i] for i in step) for step in trainer.plan.steps(0)]
    second = sum(lengths[i] for i in next(trainer.plan.steps(1)))
    counted = logged(trainer, "num_tokens")
    assert counted[2] == sum(first) == lengths.sum()
    assert counted[3] == sum(first) + second


def test_a_new_run_replaces_the_file_of_an_old_one(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9, "loss": 1}\n')
    MetricsFile(path).on_train_begin(None, state(0), CONTROL)
    assert path.read_text() == ""


def test_a_resumed_run_drops_what_was_logged_after_its_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": {step}}}\n' for step in range(1, 6)))
    file = MetricsFile(path)
    file.on_train_begin(None, state(3), CONTROL)
    file.on_log(None, state(4), CONTROL, logs={"loss": 40})
    assert [(row["step"], row["loss"]) for row in lines(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


@pytest.mark.parametrize(
    "rest", [b'{"step": 2, "lo', b'{"step": 2, "lo{"step": 3, "loss": 3}\n', b"[]", b"\0\xff"]
)
def test_a_line_that_a_crash_damaged_is_dropped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rest: bytes
):
    """It ends early, the next one is glued to it, it is no record, or no text."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1}\n' + rest)
    MetricsFile(path).on_train_begin(None, state(5), CONTROL)
    assert lines(path) == [{"step": 1, "loss": 1}]
    told = rest.decode(errors="replace").strip()
    assert f"{path}: dropped a line that a crash damaged: {told}" in caplog.text


def test_only_the_first_process_writes(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file, other = MetricsFile(path), state(1)
    other.is_world_process_zero = False
    file.on_train_begin(None, other, CONTROL)
    file.on_log(None, other, CONTROL, logs={"loss": 1})
    assert not path.exists()


# ---- The progress bar and reports ----


def test_the_progress_bar_tells_tokens_per_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path, disable_tqdm=False, max_steps=2)
    shown = capsys.readouterr()
    assert "tokens/s" in shown.err
    assert "2/2" in shown.err


@pytest.mark.parametrize("quiet", [True, False])
def test_logs_are_not_printed_as_python_objects(quiet: bool, tmp_path: Path):
    trainer = build(tmp_path, disable_tqdm=quiet)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert PrinterCallback not in kinds
    assert (ProgressLines in kinds) == quiet


def test_a_run_without_a_bar_says_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Two logs within the pause give one line, of the metrics that tell most."""
    with caplog.at_level("INFO"):
        run(tmp_path / "one", max_steps=2)
        monkeypatch.setattr(callbacks, "PAUSE", 0.0)
        run(tmp_path / "all", max_steps=2)
    told = [m for m in caplog.messages if m.startswith("step ")]
    assert [m.split(":")[0] for m in told] == ["step 1 of 2", "step 1 of 2", "step 2 of 2"]
    assert all("loss " in m and "rewards/margins " in m and "logps" not in m for m in told)


def test_evaluations_are_told_and_summaries_are_not():
    now = state(3, max_steps=9)
    assert log_line(now, {"eval_loss": 0.5, "eval_runtime": 2.0}) == "step 3 of 9: eval_loss 0.5"
    assert log_line(now, {"train_runtime": 2.0, "train_loss": 0.5}) == ""


def test_tensorboard_gets_event_files(tmp_path: Path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = run(tmp_path, report_to="tensorboard", max_steps=2)
    (path,) = tmp_path.rglob("events.out.tfevents*")
    events = reader.EventAccumulator(str(path))
    events.Reload()
    found = [event.value for event in events.Scalars("train/rewards/margins")]
    assert found == pytest.approx(logged(trainer, "rewards/margins"))


# ---- An objective's state ----


def test_the_state_survives_a_checkpoint_file(tmp_path: Path):
    kept = ObjectiveState()
    kept.values = {"anchor": 0.5, "sums": [1.0, 2.0]}
    saved = state(4, stateful_callbacks=[kept])
    saved.save_to_json(str(tmp_path / "state.json"))
    found = ObjectiveState()
    found.on_train_begin(None, TrainerState.load_from_json(str(tmp_path / "state.json")), CONTROL)
    assert found.values == kept.values
    torch.testing.assert_close(
        found.tensors(), {"anchor": torch.tensor(0.5), "sums": torch.tensor([1.0, 2.0])}
    )


def test_a_fresh_run_starts_without_state():
    found = ObjectiveState()
    found.on_train_begin(None, state(0), CONTROL)
    assert found.tensors() == {}
