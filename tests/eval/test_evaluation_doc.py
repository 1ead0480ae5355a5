"""docs/evaluation.md is followed literally: its commands run, its files, keys and options exist."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from alignment.__main__ import dispatch
from alignment.data_tools import fetch
from eval import agreement, alpaca_eval, mt_bench, translation, winrate, zero_or_down
from eval.judge_files import JUDGES, JudgeFile
from eval.mt_bench import FIELDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
OTHERS = {"config", "no-deps", "editable", "dest", "create-dirs"}
"""Options of every command, and those of other programs in the page's commands."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """The commands on files of the project."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    return [
        shlex.split(line)[1:]
        for line in lines
        if line.startswith("alignment ") and "recipes/data" in line
    ]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_on_files_of_the_project_runs(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    dispatch(command)
    assert capsys.readouterr().out


def test_there_are_commands_of_each_kind():
    assert {"mt_bench", "agreement", "translation"} <= {command[1] for command in commands()}


def test_every_option_on_the_page_exists():
    modules = (agreement, alpaca_eval, fetch, mt_bench, translation, winrate, zero_or_down)
    known = {f.name for module in modules for f in dataclasses.fields(module.Options)}
    named = set(re.findall(r"--([a-z][a-z-]+)", TEXT)) - OTHERS
    assert len(named) > 10
    assert {name for name in named if name.replace("-", "_") not in known} == set()


def test_every_file_on_the_page_exists():
    named = re.findall(r"(?<![\w/])(?:recipes|eval|tests)/[\w./]*\w", TEXT)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_judge_on_the_page_has_keys_and_verdicts_that_exist():
    (judge,) = blocks("yaml")
    keys = {field.name for field in dataclasses.fields(JudgeFile)}
    assert yaml.safe_load(judge).keys() <= keys
    assert {key for key in keys if f"`{key}`" not in TEXT and f"\n{key}:" not in TEXT} == set()
    used = {yaml.safe_load(path.read_text())["verdict"] for path in JUDGES.glob("*.yaml")}
    assert {verdict for verdict in used if f"| `{verdict}` |" not in TEXT} == set()


def test_the_fields_of_the_judges_prompts_are_named():
    fields = set.union(*map(set, FIELDS.values()))
    assert {name for name in fields if f"`{name}`" not in TEXT} == set()
