"""The benchmark of decoding measures each side and says what is bounded."""

import json
from pathlib import Path

import pytest

from benchmarks.decoding import CONTRASTS, main


def test_each_side_is_measured_and_the_same_model_twice_is_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = "--tokens 6 --batch-size 2 --prompt 8 --vocabulary 64 --hidden 32 --layers 1 --rounds 1"
    main([*small.split(), "--json", str(tmp_path / "rows.json")])
    rows = {row["side"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows.keys() == {"plain", *CONTRASTS, "args"}
    assert rows["plain"]["ratio"] == 1
    assert {name for name, row in rows.items() if row["bound"]} == set(CONTRASTS)
    assert "times plain decoding, bound 2.2" in capsys.readouterr().out
