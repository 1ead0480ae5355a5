"""A whole comparison of reduced size: resumed, repeated, and told when it cannot be done."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.commands.compare import Options, compare

REDUCED = [
    *("--sft-steps", "40", "--train-prompts", "120", "--held-out-prompts", "20", "--steps", "4"),
    *("--jobs", "2"),
]


def options(*words: object) -> Options:
    return parse(Options, [*REDUCED, *map(str, words)], "alignment compare")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "`steps` is 0; it must be at least 1"),
        (["--seeds", "1", "1"], "it must name seeds from 0, each once"),
        (["--seeds", "-1"], "it must name seeds from 0, each once"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        options(*words)


def test_an_unknown_method_is_told_before_any_work(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean `apo_zero`"):
        compare(options("--output", tmp_path / "run", "--methods", "apozero"))
    assert not (tmp_path / "run").exists()


def numbers(folder: Path) -> dict[str, Any]:
    """What a run found, seconds and memory aside."""
    record = json.loads((folder / "evidence.json").read_text())
    for method in record["methods"].values():
        del method["seconds"], method["peak_bytes"]
    return {name: record[name] for name in ("start", "methods", "found", "claims")}


@pytest.mark.slow
def test_a_run_goes_on_for_other_methods_and_gives_the_same_numbers_anew(tmp_path: Path):
    words = ("--seeds", "3", "--output")
    first, second = tmp_path / "first", tmp_path / "second"
    compare(options(*words, first, "--methods", "dpo"))
    seed = first / "seed-3"
    written = (seed / "start/model.safetensors").stat().st_mtime_ns
    compare(options(*words, first, "--methods", "dpo", "cut", "conditional"))
    assert (seed / "start/model.safetensors").stat().st_mtime_ns == written
    found = numbers(first)
    assert set(found["methods"]) == {"dpo", "cut", "conditional"}
    assert "1.1" in found["found"]["cut"][0]
    compare(options(*words, second, "--methods", "cut", "conditional", "dpo"))
    assert numbers(second) == found
    page = (first / "evidence.md").read_text()
    assert "| cut | " in page


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told_with_its_log(tmp_path: Path):
    (tmp_path / "run/seed-0").mkdir(parents=True)
    (tmp_path / "run/seed-0/note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"seed 0: start and data: .*holds something else.*log"):
        compare(options("--seeds", "0", "--output", tmp_path / "run", "--methods", "dpo"))
