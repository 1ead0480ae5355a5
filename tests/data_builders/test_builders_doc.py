"""docs/builders.md names options, files and figures that exist, and its example builder builds."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest

from alignment.__main__ import commands
from alignment.core.rows import read_rows
from alignment.data_tools import inspect
from benchmarks import contrast
from benchmarks.contrast import cases
from data_builders import base
from eval import zero_or_down

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = (ROOT / "docs/builders.md").read_text(encoding="utf-8")


def test_every_option_on_the_page_exists():
    kinds = [base.BuildOptions, base.JudgeOptions, inspect.Options, zero_or_down.Options]
    for package in ("data_builders", "alignment.data_tools"):
        modules = (importlib.import_module(f"{package}.{name}") for name in commands(package))
        kinds += [module.Options for module in modules]
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    named = set(re.findall(r"--([a-z][a-z-]+)", TEXT)) - {"help"}
    assert len(named) > 10
    assert {name for name in named if name.replace("-", "_") not in known} == set()


def test_every_file_on_the_page_exists():
    named = re.findall(r"(?:recipes|tests|benchmarks|data_builders)/[\w./]*\w", TEXT)
    named += [f"docs/{name}" for name in re.findall(r"\]\(((?!http)[\w./-]+)\)", TEXT)]
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_builder_has_its_section_and_a_row_in_the_readme():
    names = set(commands("data_builders"))
    assert names <= set(re.findall(r"^## (\w+)$", TEXT, re.MULTILINE))
    rows = re.findall(r"^\| `alignment build .*$", README, re.MULTILINE)
    assert names <= {
        name for row in rows for name in re.findall(r"`(?:alignment build )?(\w+)`", row)
    }


def test_the_table_of_contrast_has_a_row_for_every_case():
    for case in cases():
        assert f"| `{case.builder}` | {case.variant} | {case.predicted:.3f} |" in TEXT
    assert f"| {' | '.join(contrast._HEAD)} |" in TEXT


def test_the_example_builder_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "capitals.py").write_text(block)
    (tmp_path / "echo.py").write_text(
        "def say(request):\n    return request.prompt[-1]['content'] + '!'\n"
    )
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["--input", "in.jsonl", "--output", "out.jsonl", "--model", "program:echo.say"]
    importlib.import_module("capitals").main(words)
    (row,) = [row for _, row in read_rows(tmp_path / "out.jsonl")]
    assert (row["chosen"], row["rejected"]) == ("hello!", "HELLO!")
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["builder"] == "capitals"
