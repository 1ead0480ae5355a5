"""A benchmark from a stand-in for the Hub: pinned, checked, converted; no Hub is met here."""

import csv
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.data_tools import fetch
from eval.annotations import Benchmark, read_reference

NEWEST, OLDER = "a" * 40, "b" * 40
ANSWERS = [
    {"dataset": "d", "instruction": f"question {i}", "output": f"answer {i}", "generator": "base"}
    for i in range(3)
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files that downloads come from; its prompts are the expected ones."""
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(ANSWERS))
    with (folder / "df_gamed.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["model", "preference", "index", "std_delta_len", "instruction_difficulty"])
        for kind in ("verbose", "concise"):
            for i in range(3):
                table.writerow([kind, 0.25 * i, i, 1.5 - i, i / 10])
    text = json.dumps([[row["instruction"], row["output"]] for row in ANSWERS])
    monkeypatch.setattr(fetch, "ALPACA_EVAL_TEXTS", hashlib.sha256(text.encode()).hexdigest())

    def download(repository: str, file: str, *, repo_type: str, revision: str) -> str:
        assert (repository, repo_type) == ("tatsu-lab/alpaca_eval", "dataset")
        assert revision in (NEWEST, OLDER)
        return str(folder / file)

    newest = SimpleNamespace(dataset_info=lambda _: SimpleNamespace(sha=NEWEST))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: newest)
    return folder


def fetched(tmp_path: Path, *words: str) -> dict[str, Any]:
    dispatch(["data", "fetch", "alpaca_eval", "--output", str(tmp_path / "out"), *words])
    return json.loads((tmp_path / "out" / "fetched.json").read_text())


def test_prompts_and_reference_rows_are_written_as_the_evaluator_reads_them(
    hub: Path, tmp_path: Path
):
    found = fetched(tmp_path)
    assert found["revision"] == NEWEST
    checksum = hashlib.sha256((hub / "df_gamed.csv").read_bytes()).hexdigest()
    assert found["files"]["df_gamed.csv"] == checksum
    benchmark = Benchmark(tmp_path / "out" / "prompts.jsonl")
    assert [prompt.baseline for prompt in benchmark.prompts] == ["answer 0", "answer 1", "answer 2"]
    assert [prompt.difficulty for prompt in benchmark.prompts] == [0.0, 0.1, 0.2]
    reference = read_reference(tmp_path / "out" / "reference.jsonl", benchmark)
    assert reference.target.tolist() == [0.0, 0.25, 0.5] * 2


def test_the_lock_pins_the_revision_and_the_checksums(hub: Path, tmp_path: Path):
    assert fetched(tmp_path, "--revision", OLDER)["revision"] == OLDER
    assert fetched(tmp_path)["revision"] == OLDER
    table = (hub / "df_gamed.csv").read_text()
    (hub / "df_gamed.csv").write_text(table.replace("0.25", "0.26"))
    with pytest.raises(UserError, match=r"at b{40} is not what .*fetched.json says it was"):
        fetched(tmp_path)
    rows = list(read_rows(tmp_path / "out" / "reference.jsonl"))
    assert rows[1][1]["preference"] == 0.25


def test_other_prompts_than_the_published_ones_are_refused(hub: Path, tmp_path: Path):
    other = [{**row, "output": "changed"} for row in ANSWERS]
    (hub / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="not those of the published numbers"):
        fetched(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_layout_that_has_changed_is_one_line(hub: Path, tmp_path: Path):
    (hub / "alpaca_eval_gpt4_baseline.json").write_text('[{"prompt": "p"}]')
    with pytest.raises(UserError, match=r"have changed their layout \(KeyError"):
        fetched(tmp_path)


def test_without_the_hub_it_is_one_line(tmp_path: Path):
    """Tests run offline."""
    with pytest.raises(UserError, match="cannot fetch tatsu-lab/alpaca_eval: OfflineMode"):
        fetched(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpaca", "--output", "o"], "did you mean `alpaca_eval`"),
        (["alpaca_eval", "--output", "o", "--revision", "main"], "only a commit's hash"),
        (["alpaca_eval"], "needs `--output`"),
    ],
)
def test_options_that_do_not_fit_are_told(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        dispatch(["data", "fetch", *words])


def test_the_checksum_is_that_of_the_published_prompts(shared_dir: Path):
    rows = read_rows(shared_dir / "data" / "alpaca_eval" / "prompts.jsonl.gz")
    texts = [[row["instruction"], row["baseline_output"]] for _, row in rows]
    text = json.dumps(texts, ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == fetch.ALPACA_EVAL_TEXTS
