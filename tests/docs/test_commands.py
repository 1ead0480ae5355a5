"""Every command of the README and the documents is run, or says what it needs to run."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import NEEDS, PAGES, ROOT, Block, blocks

FOLDERS = ("alignment", "benchmarks", "data_builders", "docs", "eval", "recipes", "tests")


def to_be_run() -> dict[str, list[Block]]:
    """The blocks of each page that run here; what two pages show alike runs on the first."""
    seen: set[str] = set()
    found: dict[str, list[Block]] = {page: [] for page in PAGES}
    for block in (block for page in PAGES for block in blocks(page, "bash")):
        if not block.needs and block.run_by is None and block.text not in seen:
            found[block.page].append(block)
        seen.add(block.text)
    return found


RUN = to_be_run()


def test_there_are_commands_to_run():
    assert sum(map(len, RUN.values())) >= 15
    assert len(RUN["README.md"]) >= 3


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page)],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_a_mark_is_one_of_those_that_there_are(block: Block):
    assert set(block.needs) <= set(NEEDS)
    if block.run_by is not None:
        assert (ROOT / block.run_by).is_file()
    if block.language in ("sh", "shell", "console", "zsh"):
        pytest.fail("blocks of commands are marked `bash`")


def on_a_free_port(script: str) -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return re.sub(r"\b8000\b", str(probe.getsockname()[1]), script)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]])
def test_the_commands_of_a_page_run_as_they_stand(page: str, tmp_path: Path):
    """One after the other in an empty folder beside the project's; servers end with the page."""
    for name in FOLDERS:
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    script = "set -euo pipefail\nmkdir -p runs\n" + "".join(block.text for block in RUN[page])
    output = tmp_path / "output"
    with output.open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", on_a_free_port(script)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=900)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    told = output.read_text()
    assert process.returncode == 0, told[-3000:]
    if page == "README.md":
        assert '"loss": 1.0' in told
