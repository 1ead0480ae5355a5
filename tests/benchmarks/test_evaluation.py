"""Both sides of `benchmarks.evaluation` solve the same problem."""

import json
from pathlib import Path

import pytest

from benchmarks import evaluation


def test_both_sides_choose_the_same_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("sklearn", reason="the extra `dev` is not installed")
    monkeypatch.setenv("ALIGNMENT_SHARED", str(tmp_path / "nowhere"))
    file = tmp_path / "found.json"
    evaluation.main(["--rounds", "1", "--resamples", "20", "--json", str(file)])
    (found,) = json.loads(file.read_text()).values()
    assert found["c_here"] == pytest.approx(found["c_liblinear"])
    assert found["win_rate_here"] == pytest.approx(found["win_rate_liblinear"], abs=0.02)
    assert found["gap_here"] < 1e-10 < found["gap_liblinear"] < 0.05
    assert "times faster than liblinear's" in capsys.readouterr().out
