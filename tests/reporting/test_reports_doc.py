"""The page on reports is followed literally."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/reports.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_of_the_page_write_both_pages_and_the_card(tmp_path: Path):
    for name in ("recipes", "tests", "alignment"):
        (tmp_path / name).symlink_to(ROOT / name)
    (script,) = re.findall(r"```bash\n(.*?)```", DOC, flags=re.DOTALL)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = (tmp_path / "runs/report.html").read_text()
    assert "recipes/data/pairs.jsonl" in report
    assert "The log warned of nothing." in report
    assert "alignment train --config recipes/apo/smoke.yaml" in report
    assert 'id="data">' in (tmp_path / "runs/pairs.html").read_text()
    assert "2408.06266" in (tmp_path / "runs/apo-smoke/README.md").read_text()


def test_every_key_that_the_page_names_is_in_the_viewer():
    keys = (ROOT / "alignment/pages/templates/viewer.html").read_text()
    for key in ("j", "k", "/", "Esc", "Home", "End", "?"):
        assert f"<kbd>{key}</kbd>" in keys
        assert f"`{key}`" in DOC
