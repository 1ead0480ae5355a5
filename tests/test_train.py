"""The training command: a recipe in, a saved model and a report out, or one line to mend."""

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from alignment.cli import UserError
from alignment.train import build_trainer, main, parse_recipe
from alignment.trainers.base import GroupTrainer
from tests.tiny import CHAT_TEMPLATE, EOS, save_tiny, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
QUESTION, GOOD, BAD = "what is the answer?", " the answer", " no answer"
PAIR = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}

Recipe = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _own_data_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def recipe(model_dir: Path, tmp_path: Path, out: Path) -> Recipe:
    """Writes rows and a recipe of two steps; returns the words after the command."""

    def write(rows: Any = None, **changes: Any) -> list[str]:
        data = tmp_path / "pairs.jsonl"
        if rows is None:
            rows = [{**PAIR, "prompt": f"{number} {QUESTION}"} for number in range(6)]
        lines = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
        data.write_text(lines)
        settings = {
            "model_name_or_path": str(model_dir),
            "dataset_name": str(data),
            "objective": "apo",
            "use_peft": True,
            "lora_target_modules": "all-linear",
            "use_cpu": True,
            "max_steps": 2,
            "global_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "output_dir": str(out),
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        return ["--config", str(path)]

    return write


def refusal(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        main(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


# ---- A run ----


def test_a_run_trains_evaluates_saves_and_says_what_became_of_the_data(
    recipe: Recipe, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{**PAIR, "prompt": f"{number} {QUESTION}"} for number in range(6)]
    rows += [{**PAIR, "rejected": GOOD}, {"chosen": GOOD, "rejected": BAD, "prompt": ""}]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(PAIR) + "\n")
    main(recipe(rows, eval_dataset_name=str(held_out), eval_strategy="steps", eval_steps=2))
    table = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    table = {name.strip(): value for name, value in table.items()}
    assert table["groups trained on"] == "6"
    assert table["rows rejected: identical"] == "1"
    assert table["rows rejected: no_prompt"] == "1"
    assert table["steps"] == "2"
    assert float(table["eval_loss"]) < 1.0
    assert table["eval_rewards/accuracies"] in ("0.0", "1.0")
    assert table["saved to"] == str(out)
    assert table["tokens"] == str(json.loads((out / "run.json").read_text())["tokens"])
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(r["origin"], r["reason"]) for r in rejects] == [
        ("pairs.jsonl:7", "identical"),
        ("pairs.jsonl:8", "no_prompt"),
    ]
    assert rejects[0]["row"] == rows[6]
    assert rejects[0]["message"] == "chosen and rejected are the same text"
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 1
    base = AutoModelForCausalLM.from_pretrained(recipe_value(tmp_path, "model_name_or_path"))
    trained = PeftModel.from_pretrained(base, out)
    assert any(p.any() for name, p in trained.named_parameters() if "lora_B" in name)


def recipe_value(folder: Path, name: str) -> Any:
    return yaml.safe_load((folder / "recipe.yaml").read_text())[name]


def test_an_adapter_is_continued_from_where_it_was(
    recipe: Recipe, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    main(recipe())
    caplog.set_level(logging.INFO)
    main([*recipe(adapter_name_or_path=str(out)), "--output_dir", str(tmp_path / "second")])
    assert "preflight passed" in caplog.text
    first, second = (
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(recipe_value(tmp_path, "model_name_or_path")),
            folder,
        ).state_dict()
        for folder in (out, tmp_path / "second")
    )
    names = [name for name in first if "lora_B" in name]
    distances = [float((first[name] - second[name]).norm()) for name in names]
    sizes = [float(first[name].norm()) for name in names]
    assert all(0 < distance < 4 * size for distance, size in zip(distances, sizes, strict=True))


def test_the_latest_checkpoint_is_found_by_itself(recipe: Recipe, out: Path):
    words = recipe(save_strategy="steps", save_steps=1)
    main(words)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    main([*words, "--max_steps", "3", "--resume_from_checkpoint", "latest"])
    resumed = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in resumed if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3]
    assert losses[0]["loss"] == json.loads(lines[0])["loss"]


def evaluated_at(out: Path) -> list[int]:
    """The steps at which a run was evaluated."""
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [entry["step"] for entry in entries if "eval_loss" in entry]


def test_a_first_start_and_one_too_many_are_told(
    recipe: Recipe, out: Path, caplog: pytest.LogCaptureFixture
):
    """Six pairs cannot fill a step of eight."""
    words = recipe(max_steps=1, save_strategy="steps", save_steps=1, global_batch_size=8)
    words += ["--resume_from_checkpoint", "latest"]
    with caplog.at_level("INFO"):
        main(words)
        assert f"there is no checkpoint in {out} yet: starting at the first step" in caplog.text
        assert "a step is to take 8 groups: it takes the 6 there are" in caplog.text
        assert "the run was complete" not in caplog.text
        main(words)
    assert "the run was complete: no step was left to take" in caplog.text


@pytest.mark.parametrize(
    "words", [["--objective_kwargs", "{beta: 1"], ["--objective-kwargs={beta: 1"]]
)
def test_a_mapping_that_is_no_json_names_its_option(words: list[str], recipe: Recipe):
    assert "`objective_kwargs` is no JSON" in refusal([*recipe(), *words])


def test_a_column_that_may_hold_what_is_lacking_is_named(recipe: Recipe, out: Path):
    row = {"prompt": QUESTION, "responses": [GOOD, BAD], "scores": [1.0, 0.0]}
    assert "if `scores` holds it, rename that to `rewards`" in refusal(
        recipe([row], objective="nca")
    )


def test_a_part_of_the_data_is_held_out(
    recipe: Recipe, out: Path, capsys: pytest.CaptureFixture[str]
):
    main(recipe(test_split_size=2, eval_strategy="steps", eval_steps=1))
    assert "eval_loss" in capsys.readouterr().out
    assert evaluated_at(out) == [1, 2]


@pytest.mark.parametrize("source", ["test_split_size", "eval_dataset_name"])
def test_evaluation_data_without_a_strategy_is_evaluated_on_once_at_the_end(
    source: str, recipe: Recipe, tmp_path: Path, out: Path
):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(PAIR) + "\n")
    main(recipe(**{source: 2 if source == "test_split_size" else str(held_out)}))
    assert evaluated_at(out) == [2]


def test_what_is_told_of_the_best_model_is_its_own(
    recipe: Recipe, out: Path, capsys: pytest.CaptureFixture[str]
):
    """The best by the highest loss is that of the first step, which falls at the second."""
    best = {"load_best_model_at_end": True, "greater_is_better": True, "save_strategy": "steps"}
    main(recipe(test_split_size=2, eval_strategy="steps", eval_steps=1, save_steps=1, **best))
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, second = (entry["eval_loss"] for entry in entries if "eval_loss" in entry)
    assert second < first
    shown = capsys.readouterr().out
    assert re.search(rf"^eval_loss +{round(first, 4)}$", shown, re.MULTILINE)
    assert re.search(r"^weights of step +1, the best$", shown, re.MULTILINE)
    card = (out / "README.md").read_text()
    assert "| steps | 1 of 2, 4 groups each |" in card
    assert re.search(rf"^\| loss \| 1 \| 1 \| {first:.4g} \|$", card, re.MULTILINE)


def test_the_rejects_of_an_earlier_run_do_not_stay(recipe: Recipe, out: Path):
    main(recipe([PAIR] * 4 + [{**PAIR, "rejected": GOOD}], max_steps=1))
    assert (out / "rejects.jsonl").is_file()
    main(recipe([PAIR] * 4, max_steps=1))
    assert not (out / "rejects.jsonl").exists()


def test_a_mixture_keeps_its_shares(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = recipe()
    more = tmp_path / "more.jsonl"
    more.write_text((tmp_path / "pairs.jsonl").read_text())
    sources = [
        {"path": str(tmp_path / "pairs.jsonl"), "fraction": 0.75},
        {"path": str(more), "fraction": 0.25},
    ]
    path = tmp_path / "recipe.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["dataset_name"]
    path.write_text(yaml.safe_dump({**settings, "datasets": sources}))
    main(words)
    assert "groups trained on  8\n" in capsys.readouterr().out


def test_entries_of_a_mixture_may_name_folder_files_and_columns(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = recipe()
    (tmp_path / "below").mkdir()
    (tmp_path / "pairs.jsonl").rename(tmp_path / "below/pairs.jsonl")
    path = tmp_path / "recipe.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["dataset_name"]
    source: dict[str, Any] = {
        "path": str(tmp_path),
        "data_dir": "below",
        "data_files": "pairs.jsonl",
    }
    path.write_text(yaml.safe_dump({**settings, "datasets": [source]}))
    main(words)
    assert "groups trained on  6\n" in capsys.readouterr().out
    source["columns"] = ["prompt", "chosen"]
    path.write_text(yaml.safe_dump({**settings, "datasets": [source]}))
    assert "columns ['chosen', 'prompt'] fit no known format" in refusal(words)


def test_words_of_the_command_line_win_over_the_recipe(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
):
    main([*recipe(), "--max_steps", "1"])
    assert "steps              1\n" in capsys.readouterr().out


# ---- What the user can mend ----


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"chosen": GOOD, "rejected": BAD, "prompt": ""}], "no_prompt"),
        ([{"prompt": QUESTION, "chosen": "", "rejected": BAD}], "empty_response"),
        ([{**PAIR, "rejected": GOOD}], "identical"),
        ([{**PAIR, "prompt": QUESTION * 40}], "prompt_too_long"),
        ([{**PAIR, "chosen": GOOD * 60}], "too_long"),
        ([{"prompt": QUESTION, "completion": GOOD}], "lacks_pairs"),
        ([{"question": QUESTION, "answer": GOOD}], "unknown"),
        ([{"question": QUESTION, "chosen": GOOD, "rejected": BAD}], "no_prompt"),
        ([{"prompt": 7, "chosen": GOOD, "rejected": BAD}], "bad_type"),
    ],
    ids=[
        "prompt",
        "empty",
        "equal",
        "long-prompt",
        "long",
        "labels",
        "columns",
        "question",
        "type",
    ],
)
def test_rows_that_cannot_be_used_are_named_with_their_reason(
    rows: list[Any], reason: str, recipe: Recipe, out: Path
):
    message = refusal(recipe(rows, max_length=64))
    assert "no row can be used" in message
    assert "pairs.jsonl:1" in message
    assert reason in message
    # Where nothing is left to train on, the rejects are all there is.
    assert left_behind(out) == ["rejects.jsonl"]
    (line,) = (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", \n', r"pairs.jsonl:1: broken JSON"),
        (json.dumps(PAIR) + "\n[1, 2]\n", r"pairs.jsonl:2: "),
        ("", "no row can be used: the data has no row"),
    ],
    ids=["broken", "list", "empty"],
)
def test_a_broken_file_is_named_with_its_line(text: str, message: str, recipe: Recipe, out: Path):
    assert message in refusal(recipe(text))
    assert left_behind(out) == []


def test_a_missing_file_is_named_with_its_neighbour(recipe: Recipe, tmp_path: Path, out: Path):
    message = refusal(recipe(dataset_name=str(tmp_path / "pair.jsonl")))
    assert f"no such file: {tmp_path / 'pair.jsonl'}" in message
    assert left_behind(out) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "unknown key in .*recipe.yaml `learning_rat`; .*`learning_rate`"),
        ({"objective": "apoo"}, r"apoo.*apo"),
        ({"objective_kwargs": {"betta": 1}}, r"betta.*beta"),
        ({"objective_kwargs": {"beta": -1.0}}, r"beta"),
        ({"objective": "nca"}, r"NCA needs .*rewards"),
        ({"layout": "shard"}, r"layout is `shard`; it must be one of"),
        ({"max_length": 0}, r"max_length is 0; it must be at least 1"),
        ({"max_steps": "many"}, r"`max_steps` takes a whole number, got `many`"),
        ({"beta": 0.1}, r"unknown key in .* `beta`; here it stands in `objective_kwargs`, such as"),
        ({"objective_kwargs": "{beta: 0.1"}, r"`objective_kwargs` is no JSON .*: `\{beta: 0.1`;"),
        ({"test_split_size": 6}, r"test_split_size 6.* of 6 groups leaves one part empty"),
        ({"eval_strategy": "steps"}, r"has no `test` split to evaluate on"),
        ({"do_eval": True}, r"has no `test` split to evaluate on: set `eval_dataset_name`, or"),
        (
            {"eval_strategy": "steps", "datasets": [{"path": "a.jsonl"}]},
            r"a mixture has no `test` split to evaluate on: set `eval_dataset_name`, or",
        ),
        (
            {"eval_dataset_name": "a.jsonl", "test_split_size": 2},
            r"`eval_dataset_name` and `test_split_size` name evaluation data each: set one of them",
        ),
        ({"dataset_name": None}, r"the recipe names no data"),
        ({"model_name_or_path": None}, r"the recipe names no model"),
        ({"model_name_or_path": "no/such-model"}, r"no/such-model` is neither a folder here"),
        ({"adapter_name_or_path": "no/such-adapter"}, r"no/such-adapter` is no adapter"),
        ({"adapter": "clm"}, r"`adapter` and `use_peft` ask for an adapter each: set one of them"),
        ({"adapter": "clmm", "use_peft": False}, r"unknown adapter `clmm`; did you mean `clm`\?"),
        ({"objective": "panacea"}, r"Panacea steers an adapter of 2 dimensions: set `adapter: pan"),
        ({"adapter_kwargs": {"tokens": 2}}, r"adapter_kwargs are settings of an `adapter`"),
        (
            {"adapter": "aligner", "adapter_kwargs": {"token": 2}, "use_peft": False},
            r"unknown key of adapter_kwargs `token`; did you mean `tokens`\?",
        ),
        (
            {"adapter": "aligner", "use_peft": False},
            r"the adapter does not fit the model: start_layer is 2, but the layers are 0 to 1",
        ),
        ({"ref_model_name_or_path": "no/such-reference"}, r"no/such-reference` is neither"),
        ({"chat_template_path": "absent.jinja"}, r"chat_template_path: no such file"),
        ({"lora_target_modules": ["lm_head"]}, r"take `lm_head` out"),
        (
            {"lora_target_modules": ["c_attn"]},
            r"lora_target_modules: the model has no module `c_attn`; its linear layers are "
            r"down_proj, .*; `all-linear` takes all but the head",
        ),
        ({"attn_implementation": "flash_attention_2"}, r"flash_attention_2 needs a GPU, .*`sdpa`"),
        ({"fp16": True}, r"fp16: true needs a GPU; leave it out on a CPU"),
        pytest.param(
            {"bf16": True, "use_cpu": False},
            r"bf16: true is for a GPU, and this machine shows none: .*`use_cpu: true` and",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        ({"dataloader_drop_last": True, "global_batch_size": 8}, r"6 groups do not fill one batch"),
        ({"resume_from_checkpoint": "absent"}, r"no such folder: absent"),
        ({"datasets": ["a.jsonl"]}, r"`datasets` takes a list of mappings such as"),
        ({"datasets": [{"id": "a"}]}, r"unknown key of datasets\[0\] `id`; known: columns"),
        ({"datasets": [{"split": "train"}]}, r"datasets\[0\] names no data set: set `path`"),
        ({"objective_kwargs": "[1]"}, r"objective_kwargs, .*take a mapping .*, got `\[1\]`"),
        ({"lora_target_modules": ".*(q_proj"}, r"lora_target_modules: `.*\(q_proj` is no regular"),
        ({"report_to": "nowhere"}, r"the recipe cannot be trained: nowhere is not supported, only"),
        ({"model_init_kwargs": {"depth": 1}}, r"the recipe cannot be trained: .*argument 'depth'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_recipe_that_cannot_run_is_refused_in_one_line(
    changes: dict[str, Any], message: str, recipe: Recipe, out: Path
):
    found = refusal(recipe(**changes))
    assert re.search(message, found), found
    # Data that does not fit the objective is listed, row by row.
    rejected = ["rejects.jsonl"] if "no row can be used" in found else []
    assert left_behind(out) == rejected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "galore_adamw"}, r"the recipe cannot be trained: .*GaLore"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"One of min_lr or min_lr_rate should be"),
        ({"lr_scheduler_kwargs": {"power": 1}}, r"unexpected keyword argument 'power'"),
        (
            {"eval_strategy": "steps", "save_strategy": "best", "metric_for_best_model": "best"},
            r"cannot be trained: .*`metric_for_best_model`.* set to 'eval_best', .*'eval_loss'",
        ),
    ],
)
def test_settings_that_a_library_refuses_when_training_begins_are_told_in_one_line(
    changes: dict[str, Any], message: str, recipe: Recipe
):
    found = refusal(recipe(test_split_size=2, **changes))
    assert re.search(message, found), found


def test_what_lies_behind_a_refusal_is_shown_where_that_is_asked_for(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
):
    changes, logger = {"optim": "galore_adamw"}, logging.getLogger("alignment")
    level, verbosity = logger.level, transformers_logging.get_verbosity()
    try:
        refusal(recipe(**changes))
        assert "Traceback" not in caplog.text
        refusal(recipe(**changes, log_level="debug"))
        assert "Traceback" in caplog.text
    finally:
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)


def test_data_are_read_by_the_tokenizer_of_the_revision(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    load, asked = AutoTokenizer.from_pretrained, list[Any]()

    def noted(source: Any, **more: Any) -> Any:
        asked.append(more.get("revision"))
        return load(source, **more)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", noted)
    build_trainer(parse_recipe(recipe(model_revision="v1")))
    assert set(asked) == {"v1"}


def test_an_error_of_a_step_keeps_its_traceback(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(GroupTrainer, "compute_loss", fail)
    with pytest.raises(TypeError, match="a bug"):
        main(recipe())


@pytest.mark.parametrize("flag", ["--learning_rat", "--learning-rat", "--learning_rat=1"])
def test_an_unknown_option_names_the_nearest_one(flag: str, recipe: Recipe):
    assert "`--learning_rate`" in refusal([*recipe(), flag, "1"])


def test_a_recipe_may_extend_another_and_set_the_environment(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALIGNMENT_TEST", "before")
    recipe(lora_r=4, learning_rate="1e-4")
    path = tmp_path / "more.yaml"
    path.write_text("extends: recipe.yaml\nlora_r: 2\nenv: {ALIGNMENT_TEST: 1}\n")
    made = parse_recipe(["--config", str(path), "--max_steps", "3"])
    assert (made.model.lora_r, made.training.learning_rate, made.training.max_steps) == (2, 1e-4, 3)
    assert os.environ["ALIGNMENT_TEST"] == "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: recipe.yaml\nlora_rank: 2\n", "unknown key in .*more.yaml `lora_rank`; did you"),
        ("extends: recipe.yaml\nenv: 3\n", "not iterable"),
    ],
)
def test_a_recipe_that_extends_another_is_checked_as_one(
    recipe: Recipe, tmp_path: Path, text: str, message: str
):
    recipe()
    (tmp_path / "more.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse_recipe(["--config", str(tmp_path / "more.yaml")])


def test_a_recipe_may_be_named_with_an_equals_sign(recipe: Recipe, out: Path):
    _, path = recipe()
    main([f"--config={path}", "--max_steps=1"])
    assert (out / "adapter_model.safetensors").is_file()


def test_a_tokenizer_without_an_end_is_refused(recipe: Recipe, tmp_path: Path, out: Path):
    model = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    message = refusal(recipe(model_name_or_path=str(model)))
    assert "has no end-of-sequence token" in message
    assert "set `eos_token`" in message
    assert left_behind(out) == []


def conversation(**changes: str) -> dict[str, Any]:
    turn = {name: [{"role": "assistant", "content": PAIR[name]}] for name in ("chosen", "rejected")}
    prompt = [{"role": "user", "content": QUESTION}]
    prompt = [*({"role": role, "content": text} for role, text in changes.items()), *prompt]
    return {"prompt": prompt, **turn}


def test_a_chat_template_that_drops_the_system_turn_is_refused_where_the_data_has_one(
    recipe: Recipe, tmp_path: Path, out: Path
):
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("in messages", "in messages if m.role != 'system'"))
    template.write_text(
        template.read_text().replace("for message", "for m").replace("message[", "m[")
    )
    words = recipe([conversation(system="Be brief.")], chat_template_path=str(template))
    message = refusal(words)
    assert "drops the system turn, which the data has" in message
    assert "mend the template (`chat_template_path`)" in message
    assert left_behind(out) == []
    main([*recipe([conversation()] * 4, chat_template_path=str(template)), "--max_steps", "1"])


def test_conversations_without_a_chat_template_are_refused(
    recipe: Recipe, tmp_path: Path, out: Path
):
    model = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(model).eos_token == EOS
    message = refusal(recipe([conversation()], model_name_or_path=str(model)))
    assert "no chat template: set `chat_template_path`" in message
    assert left_behind(out) == []


# ---- The output folder ----


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    code: int,
    words: str,
    recipe: Recipe,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(self: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "write_bytes", fail)
    message = refusal(recipe(model_name_or_path="no/such-model"))
    assert f"cannot write to output_dir {out}: {words}; choose another" in message
    assert left_behind(out) == []


def test_an_output_folder_below_a_file_is_refused(recipe: Recipe, tmp_path: Path):
    (tmp_path / "file").write_text("")
    message = refusal(recipe(output_dir=str(tmp_path / "file" / "out")))
    assert "cannot write to output_dir" in message


def test_an_interrupted_run_says_how_to_go_on_and_a_new_one_what_it_writes_over(
    recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    words = recipe(max_steps=2, save_strategy="steps", save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "save_state", interrupt)
        with pytest.raises(UserError) as caught:
            main(words)
    assert caught.value.status == 130
    last = out / "checkpoint-2"
    assert str(caught.value) == (
        f"interrupted; `--resume_from_checkpoint latest` goes on from {last}"
    )
    with caplog.at_level("INFO"):
        main([*words, "--resume_from_checkpoint", "latest"])
        main(words)
    assert f"going on from {last}" in caplog.text
    assert f"starting anew over {last}; `--resume_from_checkpoint latest`" in caplog.text


def test_a_run_over_a_finished_one_is_told(recipe: Recipe, caplog: pytest.LogCaptureFixture):
    words = recipe(max_steps=1, save_strategy="no")
    with caplog.at_level("INFO"):
        main(words)
        assert "starting anew" not in caplog.text
        main(words)
    assert "starting anew over the run in" in caplog.text


@pytest.mark.parametrize("error", [SafetensorError, RuntimeError])
def test_a_disk_that_fills_up_during_the_run_is_told_in_one_line(
    error: type[Exception], recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch
):
    """Writers of weights raise errors of their own; elsewhere they are what they say."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("cannot write")

    monkeypatch.setattr(GroupTrainer, "save_model", fail)
    words = recipe(max_steps=1)
    with pytest.raises(error, match="cannot write"):
        main(words)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert f"{out} is full: make room and resume" in refusal(words)


# ---- As a user starts it ----


def started(words: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder)}
    command = [sys.executable, "-m", "alignment.train", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_process_ends_with_two_and_one_line(recipe: Recipe, tmp_path: Path, out: Path):
    done = started(recipe(dataset_name="absent.jsonl"), tmp_path / "cache")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no such file: absent.jsonl")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert left_behind(out) == []


# ---- Ways to train ----


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"use_dora": True}, "adapter_model.safetensors"),
        ({"use_rslora": True, "lora_target_modules": "q_proj"}, "adapter_model.safetensors"),
        ({"use_peft": False}, "model.safetensors"),
        ({"use_peft": False, "adapter": "clm"}, "adapter_model.safetensors"),
    ],
    ids=["dora", "rslora", "full", "clm"],
)
def test_adapters_of_any_kind_and_whole_models_are_trained(
    changes: dict[str, Any], file: str, recipe: Recipe, out: Path
):
    main(recipe(**changes))
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[0]["loss"] == pytest.approx(1.0, abs=1e-6)
    assert losses[1]["loss"] < 1.0
    weights = load_file(out / file)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert ("lora_magnitude_vector" in " ".join(weights)) is ("use_dora" in changes)


@pytest.mark.slow
def test_a_model_in_four_bits_trains_saves_and_is_reloaded(
    recipe: Recipe, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Going on from the saved adapter starts with the loss at which evaluation left it."""
    pytest.importorskip("bitsandbytes")
    model = save_tiny(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    changes = {**bits, "model_name_or_path": str(model), "learning_rate": 0.01}
    changes |= {"objective": "cpo", "eval_strategy": "epoch", "test_split_size": 2}
    main(recipe(**changes, max_steps=6))
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert trained[-1] != trained[0]
    second = tmp_path / "second"
    again = {**changes, "adapter_name_or_path": str(out), "learning_rate": 0.0}
    main([*recipe(**again, max_steps=1), "--output_dir", str(second), "--eval_steps", "1"])
    entries = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    reloaded = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert reloaded[-1] == pytest.approx(trained[-1], abs=1e-5)


def test_a_trained_model_is_pushed_to_the_hub_where_asked(
    recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch
):
    uploaded: list[dict[str, Any]] = []

    def upload(api: HfApi, **kwargs: Any) -> SimpleNamespace:
        names = sorted(path.name for path in Path(kwargs["folder_path"]).iterdir())
        uploaded.append({**kwargs, "names": names})
        return SimpleNamespace()

    url = SimpleNamespace(repo_id="me/aligned")
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: url)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    main(recipe(push_to_hub=True, hub_model_id="me/aligned"))
    last = uploaded[-1]
    assert last["repo_id"] == "me/aligned"
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= set(last["names"])
    assert "contrastive-alignment" in (out / "README.md").read_text()
