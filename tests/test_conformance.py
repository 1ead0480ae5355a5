from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.__main__ import main
from tests.conformance.runner import adapters, run_file, vector_files

VECTORS = Path(__file__).parent / "vectors"
# What the reference computes beside the loss of some methods; those have no use for it.
NOT_IN_LOSS = {
    "rejected_position_kl",
    "chosen_position_kl",
    "batch_gap_chosen",
    "batch_gap_rejected",
}
# Where several edit scripts are equally short the choice is the library's, and nothing counts them.
NOT_BINDING = {"original_mask", "revised_mask", "optimal_alignments"}


def _check(path: Path) -> None:
    report = run_file(path, adapters())
    assert report.misses == []
    assert report.passed == report.cases > 0
    assert report.unchecked <= NOT_IN_LOSS | NOT_BINDING


@pytest.mark.parametrize("path", vector_files([VECTORS]), ids=lambda path: path.stem)
def test_every_case_of_the_projects_own_vectors_passes(path: Path) -> None:
    _check(path)


def test_every_case_of_the_shared_vectors_passes(shared_dir: Path) -> None:
    for path in vector_files([shared_dir / "vectors", shared_dir / "vectors-extended"]):
        if json.loads(path.read_text())["objective"] in adapters():
            _check(path)


@pytest.fixture
def tampered(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Writes the DPO vectors after a change to their first case, or to the whole document."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        document = json.loads((VECTORS / "dpo.json").read_text())
        change(document)
        path = tmp_path / "tampered.json"
        path.write_text(json.dumps(document))
        return path

    return write


def _shift(document: dict[str, Any], *keys: str | int) -> None:
    """Moves one number of the first case by about ten times the tolerance."""
    place = document["cases"][0]["expected"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] += 1e-8


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("loss",), "expected.loss"),
        (("per_example", 1), "expected.per_example[1]"),
        (("chosen_rewards", 0), "expected.chosen_rewards[0]"),
        (("grads", "policy_rejected_logps", 2), "expected.grads.policy_rejected_logps[2]"),
    ],
)
def test_a_value_beyond_the_tolerance_is_a_miss(
    tampered: Any, capsys: pytest.CaptureFixture[str], keys: tuple[str | int, ...], name: str
) -> None:
    path = tampered(lambda document: _shift(document, *keys))
    assert main([str(path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"sigmoid-logps-normal-B4-beta0.1: {name}: got" in lines[0]


def test_one_row_is_printed_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(VECTORS / "dpo.json"), str(VECTORS / "cut.json")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:4] for row in rows[1:]] == [
        [str(VECTORS / "dpo.json"), "dpo", "9", "9"],
        [str(VECTORS / "cut.json"), "cut", "7", "7"],
    ]


def test_a_value_that_no_adapter_computes_is_named_in_the_row(
    tampered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tampered(lambda document: document["cases"][0]["expected"].update(entropy=1.0))
    assert main([str(path)]) == 0
    assert "unchecked: entropy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(objective="dpoo"), "objective `dpoo` is unknown; known: adpa"),
        (lambda d: d.pop("objective"), "it names no `objective`"),
        (lambda d: d.update(cases=[]), "it has no `cases`"),
        (lambda d: d.pop("tolerance"), "cases[0] is broken"),
        (lambda d: d["cases"][0].pop("inputs"), "cases[0] is broken at 'inputs'"),
        (lambda d: d["cases"][0].update(dtype="int8"), "cases[0] is broken at 'int8'"),
        (lambda d: d["cases"][0]["expected"].pop("loss"), "cases[0].expected lacks loss"),
        (lambda d: d["cases"][0]["params"].update(gamma=1), "params.gamma is unknown"),
        (lambda d: d["cases"][0]["params"].update(loss_type="kto"), "`kto` is unknown"),
        (lambda d: d["cases"][0]["params"].update(beta=-1), "DPO.beta is -1"),
        (
            lambda d: d["cases"][0]["inputs"].pop("policy_chosen_logps"),
            "inputs.policy_chosen_logps is missing",
        ),
        (
            lambda d: d["cases"][0]["expected"]["grads"].update(policy_chosen_logps=[0.0]),
            "expected.grads.policy_chosen_logps: got 4 values, not 1",
        ),
    ],
)
def test_a_broken_file_gets_one_line_and_a_non_zero_exit(
    tampered: Any,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    assert main([str(tampered(change))]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_text_or_a_missing_number_that_differs_is_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((VECTORS / "conditional.json").read_text())
    document["cases"][0]["expected"]["texts"][0] += "!"
    document["cases"][1]["expected"]["token_scores"][0][0] = None
    path = tmp_path / "tampered.json"
    path.write_text(json.dumps(document))
    assert main([str(path)]) == 1
    misses = capsys.readouterr().err.splitlines()
    assert len(misses) == 2
    assert "expected.texts[0]: got" in misses[0]
    assert "expected.token_scores[0][0]: got 0.5, reference -inf" in misses[1]


def test_no_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "missing.json")]) == 1
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()] == [
        "no vector file given: name files, or folders that hold *.json files",
        f"{tmp_path}: no *.json file in this folder",
        f"{tmp_path / 'missing.json'}: no such file or folder",
    ]


def test_one_broken_file_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert main([str(broken), str(VECTORS / "dpo.json")]) == 1
    captured = capsys.readouterr()
    assert f"{broken}: not a readable JSON file" in captured.err
    assert captured.out.splitlines()[1].split()[1:4] == ["dpo", "9", "9"]
