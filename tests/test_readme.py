"""The README names what exists; its commands and its objective are run by `tests/docs`."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:alignment|recipes|docs|tests|benchmarks)/[\w./-]+)`", README)
    named += re.findall(r"\]\(((?!http)[\w./-]+)\)", README)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_its_picture_is_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([\w./]+)\)", README)
    assert 1_000 < (ROOT / picture).stat().st_size < 100_000
