"""The table of engines says of every run what `alignment estimate` says."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment.commands import estimate
from alignment.train import parse_recipe
from benchmarks import engines


@pytest.fixture
def words(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(engines, "PROMPT", 8)
    monkeypatch.setattr(engines, "RESPONSE", 8)
    engines._write_data(tmp_path / "pairs.jsonl")
    return [*engines._words(tmp_path, model_dir), "--max_tokens_per_batch", "48"]


def test_one_trace_serves_all_engines(words: list[str]):
    one, eight = engines.figures_of(words, {1: 0, 8: 3}, 1e9)
    wanted = estimate.Options(num_processes=8, zero_stage=3, flops=1e9)
    figures = estimate.estimate(parse_recipe(words), wanted)
    assert eight["memory"] == figures["memory"]
    assert eight["seconds_per_step"] == pytest.approx(figures["seconds_per_step"])
    assert eight["largest_pass"] == one["largest_pass"] == figures["largest_pass"]
    assert eight["memory"]["total"] < one["memory"]["total"]


def test_a_line_names_the_engine_and_rounds_to_two_digits():
    memory = dict.fromkeys(engines.HELD, 2.0**30)
    row: dict[str, Any] = {"size": "8B", "trained": "full", "memory": {**memory, "total": 2.0**32}}
    row |= {"processes": 8, "zero_stage": 3, "seconds_per_step": 367.2}
    assert engines.line(row) == "| 8B | full | 8 | ZeRO-3 | 4.0 | 4.0 | 370 |"
    assert "| DDP |" in engines.line({**row, "zero_stage": 0})
    assert "| one process |" in engines.line({**row, "zero_stage": 0, "processes": 1})
