"""docs/calls.md names options, files and fields that exist."""

import dataclasses
import re
from pathlib import Path

from alignment.commands import generate
from alignment.llm.prompts import _FILTERS
from data_builders import clair, rlcd
from eval import winrate, zero_or_down
from eval.judge import PAIRWISE_FIELDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/calls.md").read_text(encoding="utf-8")

OTHERS = {"help", "port", "device", "no-deps", "editable"}
"""Options of other programs in the page's commands."""


def test_every_option_on_the_page_exists():
    modules = (generate, clair, rlcd, winrate, zero_or_down)
    known = {f.name for module in modules for f in dataclasses.fields(module.Options)}
    named = set(re.findall(r"--([a-z][a-z-]+)", TEXT)) - OTHERS
    assert len(named) > 20
    assert {name for name in named if name.replace("-", "_") not in known} == set()


def test_every_file_on_the_page_exists():
    named = re.findall(r"(?:recipes|eval|data_builders)/[\w./]*\w", TEXT)
    assert len(named) > 2
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_fields_and_filters_are_those_of_the_code():
    assert f"filters {', '.join(['trim', 'upper', 'lower', 'length', 'tojson'])}" in TEXT
    assert {"trim", "upper", "lower", "length", "tojson"} == _FILTERS
    assert "`prompt`, `first`, `second`" in TEXT
    assert {"prompt", "first", "second"} == PAIRWISE_FIELDS
