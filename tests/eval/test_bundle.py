"""A bundle opens as it was sealed, or says in one line what was done to it."""

import json
from pathlib import Path

import pytest

from alignment.cli import UserError
from eval.bundle import MANIFEST, seal, unseal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verdicts.jsonl").write_text('{"score": 1.0}\n{"score": null}\n')
    seal(tmp_path, "winrate", {"model": "judge"}, {"seed": 3}, ["verdicts.jsonl"])
    return tmp_path


def test_it_holds_judge_settings_and_rows(folder: Path):
    bundle = unseal(folder, "winrate")
    assert (bundle.judge, bundle.settings) == ({"model": "judge"}, {"seed": 3})
    assert bundle.rows("verdicts.jsonl") == [{"score": 1.0}, {"score": None}]


def test_a_copy_elsewhere_is_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    copy = tmp_path_factory.mktemp("copy") / "run"
    folder.rename(copy)
    assert unseal(copy, "winrate").rows("verdicts.jsonl")


def test_another_evaluator_is_named(folder: Path):
    with pytest.raises(UserError, match="a run of `winrate`; recompute it by `alignment eval win"):
        unseal(folder, "mt_bench")


def test_rows_that_were_changed_or_lost_are_named(folder: Path):
    rows = folder / "verdicts.jsonl"
    rows.write_text('{"score": 1.0}\n')
    with pytest.raises(UserError, match=r"verdicts\.jsonl was changed after the run"):
        unseal(folder, "winrate")
    rows.unlink()
    with pytest.raises(UserError, match=r"verdicts\.jsonl is missing"):
        unseal(folder, "winrate")


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"evaluator": "winrate"})])
def test_a_manifest_that_is_damaged_is_one_line(folder: Path, text: str):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"bundle\.json is damaged"):
        unseal(folder, "winrate")


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path):
    with pytest.raises(UserError, match="no bundle in"):
        unseal(tmp_path, "winrate")
