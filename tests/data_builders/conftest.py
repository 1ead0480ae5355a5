"""A real server that several builders are tried on, started once."""

from collections.abc import Iterator

import pytest

from tests.llm.real_server import Served, running, save_parrot

YES, NO = "## Response\nYes.", "## Response\nNo."


@pytest.fixture(scope="session")
def yes_or_no(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`transformers serve` with a model that draws `YES` or `NO` to everything."""
    with running(save_parrot(tmp_path_factory.mktemp("parrot"), YES, NO)) as served:
        yield served
