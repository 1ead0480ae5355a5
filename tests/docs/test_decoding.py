"""The code of docs/decoding.md runs."""

from pathlib import Path

import pytest

from tests.docs.pages import blocks
from tests.tiny import save_tiny


def test_a_contrast_is_put_into_generate_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (block,) = blocks("docs/decoding.md", "python")
    save_tiny(tmp_path / "runs/expert")
    save_tiny(tmp_path / "runs/amateur", seed=1)
    monkeypatch.chdir(tmp_path)
    found: dict[str, list[object]] = {}
    exec(block.text, found)
    assert len(found["answers"]) == 2
