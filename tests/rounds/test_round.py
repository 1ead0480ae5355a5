"""What a recipe names for a stage counts by its content, in every stage that has options."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.rounds import round as rounds
from alignment.rounds.options import Asked, Options
from alignment.rounds.round import Policy, Round
from alignment.rounds.store import Store
from alignment.stages import Stage

WORDS = list[str]


def made(at: Round, stage: str) -> str:
    """The folder of a stage, which nothing is done in."""
    data = at.prompts
    {
        "generate": lambda: at.generate(data),
        "build": lambda: at.build("clair", data),
        "train": lambda: at.train(data, "dpo", {}),
        "evaluate": lambda: at.judge(data, data, Asked("j", None)),
    }[stage]()
    return at.store.made[-1].folder.name


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[WORDS]:
    """The words of the commands that would have run."""
    seen: list[WORDS] = []

    def noted(name: str, *given: Any) -> Stage:
        words = next(value for value in given if isinstance(value, tuple))
        return Stage(name, {}, lambda: seen.append([*map(str, words)]))

    monkeypatch.setattr(rounds, "command", noted)
    monkeypatch.setattr(rounds, "training", noted)
    return seen


def round_of(folder: Path, **options: Any) -> Round:
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "ask"}\n')
    asked: dict[str, Any] = {"method": "clair", "model": "m", "judge_model": "j"}
    files: dict[str, Any] = {"prompts": prompts, "held_out": prompts, "output": folder / "run"}
    chosen = Options(**asked, **files, prompts_per_round=1, **options)
    store = Store(chosen.output)
    policy = Policy("m")
    return Round(1, options=chosen, store=store, policy=policy, prompts=prompts, held_out=prompts)


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        ("generate", "demonstrations"),
        ("build", "prompt"),
        ("train", "eval_dataset_name"),
        ("train", "chat_template_path"),
        ("evaluate", "judge"),
    ],
)
def test_a_file_that_is_edited_makes_its_stage_anew(
    stage: str, option: str, commands: list[WORDS], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    named = Path("named.txt")
    at = round_of(tmp_path, **{stage: {option: str(named)}})
    named.write_text("one")
    first = made(at, stage)
    named.touch()
    assert made(at, stage) == first
    named.write_text("another")
    assert made(at, stage) != first
    assert len(commands) == 2
    words = commands[0]
    assert words[words.index(f"--{option}") + 1] == "named.txt"


def test_a_model_that_is_trained_anew_is_another_reference(
    commands: list[WORDS], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "reference/model.safetensors"
    weights.parent.mkdir()
    (weights.parent / "config.json").write_text("{}")
    weights.write_bytes(b"one")
    inner = {"reference": "reference"}
    train = {"ref_model_name_or_path": "./reference", "objective_kwargs": inner}
    at = round_of(tmp_path, train=train)
    first = made(at, "train")
    weights.write_bytes(b"another")
    assert made(at, "train") != first
    words = commands[0]
    assert words[words.index("--ref_model_name_or_path") + 1] == "reference"
    assert json.loads(words[words.index("--objective_kwargs") + 1]) == inner


def test_without_files_a_stage_is_named_by_its_settings_alone(
    commands: list[WORDS], tmp_path: Path
):
    """Loops that are done stay done: the checksum of these settings is what it always was."""
    assert (
        made(round_of(tmp_path, evaluate={"judge": "pairwise"}), "evaluate") == "judged-27f9a4b192"
    )
