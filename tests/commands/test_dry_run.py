"""`alignment train --dry-run` shows what a run would do, checks it, and saves nothing."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment import launch
from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.commands._dry_run import engine_of, examples
from alignment.core.packing import TokenGroup
from alignment.train import main as train
from alignment.trainers import start
from tests.tiny import tiny_tokenizer


@pytest.fixture
def words(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # a dry run sets it; it is put back
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n} what?", "chosen": " this", "rejected": " that"} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": model_dir,
        "dataset_name": data,
        "use_peft": "true",
        "lora_target_modules": "all-linear",
        "use_cpu": "true",
        "global_batch_size": 4,
        "max_steps": 6,
        "output_dir": tmp_path / "out",
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def test_plan_examples_and_preflight_are_shown_and_nothing_is_saved(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO")
    dispatch(["train", "--dry-run", *words])
    shown = capsys.readouterr().out
    assert "6 of 4 groups" in shown
    assert "a step at its highest moment" in shown
    assert "example 1 of 5, pairs.jsonl:1" in shown
    assert "example 5 of 5, pairs.jsonl:12" in shown
    assert shown.count("chosen:") == shown.count("rejected:") == 5
    assert "preflight passed" in caplog.text
    assert shown.endswith("dry run passed: no step was taken and nothing saved\n")
    assert "\x1b" not in shown
    assert not (tmp_path / "out").exists()


def test_rejected_rows_are_shown_for_there_is_no_file_of_them(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "what?", "chosen": "a", "rejected": "a"}\n' * 2)
    caplog.set_level("INFO")
    dispatch(["train", "--dry-run", *words])
    told = "2 identical, the first pairs.jsonl:13: chosen and rejected are the same text"
    assert f"rejected: {told}\n" in capsys.readouterr().out
    assert "rejects.jsonl" not in caplog.text


@pytest.mark.parametrize("adapter", ["true", "false"])
def test_no_reference_is_stored(
    adapter: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(start, "store_reference", lambda trainer: pytest.fail("it is stored"))
    caplog.set_level("INFO")
    more = ["--precompute_ref_log_probs", "true", "--ref_cache_dir", str(tmp_path / "reference")]
    dispatch(["train", "--dry-run", *words, *more, "--use_peft", adapter])
    assert "preflight passed: largest log-ratio 0.0e+00 nats, first loss 1.0000" in caplog.text
    assert not (tmp_path / "reference").exists()


def test_what_training_would_refuse_a_dry_run_refuses(words: list[str], tmp_path: Path):
    with pytest.raises(UserError, match="the model has no module `no_such`"):
        dispatch(["train", "--dry-run", *words, "--lora_target_modules", "no_such"])
    with pytest.raises(UserError, match="the recipe cannot be trained: One of min_lr or min_lr_"):
        dispatch(["train", "--dry-run", *words, "--lr_scheduler_type", "cosine_with_min_lr"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to output_dir"):
        dispatch(["train", "--dry-run", *words, "--output_dir", str(tmp_path / "file" / "out")])


def test_the_estimate_is_for_the_processes_that_the_launcher_would_start(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 4)
    options, rest = engine_of(["--launcher", "zero3", "--gpus", "8", "--learning_rate", "1"])
    assert (options.num_processes, options.zero_stage, rest) == (8, 3, ["--learning_rate", "1"])
    options, _ = engine_of(["--launcher", "fsdp2"])
    assert (options.num_processes, options.zero_stage) == (4, 3)
    options, _ = engine_of(["--launcher", "multi_node", "--nodes", "2", "--main_address", "a"])
    assert (options.num_processes, options.zero_stage) == (8, 3)
    options, _ = engine_of(["--launcher", "ddp", "--processes", "2"])
    assert (options.num_processes, options.zero_stage) == (2, 0)
    options, rest = engine_of(["--max_steps", "1"])
    assert (options.num_processes, options.zero_stage, rest) == (1, 0, ["--max_steps", "1"])


def test_what_the_launcher_would_refuse_an_estimate_for_it_refuses():
    with pytest.raises(UserError, match="there is no GPU to use: say how many `--processes`"):
        engine_of(["--launcher", "ddp", "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        (2, {"deepspeed_config": None}),
        (1, {"deepspeed_config": {"zero_stage": 1}}),
        (3, {"deepspeed_config": {"deepspeed_config_file": "ds.json"}}),
    ],
)
def test_the_stage_of_zero_is_read_where_accelerate_reads_it(
    stage: int, file: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    Path("engine.yaml").write_text(json.dumps({"distributed_type": "DEEPSPEED", **file}))
    options, _ = engine_of(["--launcher", "engine.yaml", "--gpus", "2"])
    assert options.zero_stage == stage


def test_an_example_colours_prompt_context_and_response_and_counts_what_it_leaves_out():
    tokenizer = tiny_tokenizer()
    prompt, judged, answer = (tokenizer(text)["input_ids"] for text in ("q" * 400, "!", "yes"))
    group = TokenGroup.of([prompt, [*prompt, *judged]], [answer, answer], role=[0, -1])
    shown = examples([group], tokenizer, coloured=True)
    assert f"[{len(prompt) - 240} tokens]" in shown
    assert "\x1b[33m!\x1b[0m" in shown
    assert shown.count("\x1b[32myes\x1b[0m") == 2
    assert "example 1 of 1" in shown
    assert "response:" in shown
    assert "rejected:" in shown


def test_the_trainer_by_itself_says_where_dry_runs_are(words: list[str]):
    with pytest.raises(UserError, match="is started by `alignment train --dry-run`"):
        train([*words, "--dry-run"])
