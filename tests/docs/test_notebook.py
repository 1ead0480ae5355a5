"""The notebook runs from top to bottom, offline, and shows what it says."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.pages import ROOT

TOUR = ROOT / "docs/tour.ipynb"


def printed(notebook: Any) -> str:
    """What all cells print, and the values of their last lines."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    return "".join(o.get("text", "") for o in outputs if o.get("name") == "stdout")


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []


@pytest.mark.slow
def test_it_runs_and_the_trained_model_prefers_the_chosen_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = nbformat.read(TOUR, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}
    )
    client.execute()
    told = printed(notebook)
    losses = re.search(r"loss ([\d.]+) -> ([\d.]+)", told)
    assert losses
    assert float(losses[1]) == pytest.approx(1.0, abs=1e-3)
    assert float(losses[2]) < 0.8
    shares = re.search(r"chosen side: ([\d.]+) of pairs before, ([\d.]+) after", told)
    assert shares
    assert float(shares[2]) > float(shares[1])
    assert float(shares[2]) > 0.75
