"""What tests of loops start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rounds.small import teach


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in the world's form, mostly wrongly; read only."""
    return teach(tmp_path_factory.mktemp("world"), 150, 200, 40)
