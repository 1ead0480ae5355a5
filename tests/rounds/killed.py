"""A loop that was killed in every stage, held against one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.llm.ledger import Ledger
from alignment.rounds.store import LEDGER

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ("start.jsonl", "round-?.jsonl")
IN_FLIGHT = 8
"""Calls, and samples of a model in this process, that may be made again after a kill."""


def survives_kills(config: Path, folder: Path) -> dict[str, Any]:
    """Runs a loop with a kill in every stage, and one without.

    Adapters, answers, data and verdicts must be the same byte for byte. A call or a draw may be
    made again only if it was in flight when its stage was killed.

    Args:
        config: The loop's file, as `tests.rounds.small.config` writes it.
        folder: An empty folder of the test.

    Returns:
        What the run without kills came to.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.rounds.killing", str(config), str(folder)],
        cwd=ROOT,
        env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout}\\n{done.stderr}"[-6000:]
    stages = json.loads(done.stdout.splitlines()[-1])
    assert {name.partition("/")[0] for name in stages} >= {"prompts", "start", "round-1", "round-2"}
    whole, killed = folder / "whole", folder / "killed"
    made = _made(whole)
    assert sum(name.endswith("adapter_model.safetensors") for name in made) >= 2
    assert _made(killed) == made
    with Ledger(whole / LEDGER) as one, Ledger(killed / LEDGER) as other:
        assert other.totals().calls == one.totals().calls
    _assert_little_is_asked_again(folder, len(stages))
    for answers in (path for kind in ANSWERS for path in killed.rglob(kind)):
        drawn = [(json.dumps(row["prompt"]), row["sample"]) for _, row in read_rows(answers)]
        assert len(drawn) == len(set(drawn)), answers
    return dict(json.loads((whole / "results.json").read_text()))


def _made(run: Path) -> dict[str, bytes]:
    """What a run has made, but for records of time and cost."""
    kinds = ("*.safetensors", "data.jsonl", "prompts.jsonl", "verdicts.jsonl", *ANSWERS)
    paths = [path for kind in kinds for path in sorted(run.rglob(kind))]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def _assert_little_is_asked_again(folder: Path, kills: int) -> None:
    whole, killed = (
        Counter((folder / f"{name}.asked").read_text().splitlines()) for name in ("whole", "killed")
    )
    assert killed.keys() == whole.keys()
    assert (killed - whole).total() <= IN_FLIGHT * kills
    # Most is asked in few stages, so a stage that began anew would show.
    assert (killed - whole).total() <= whole.total() / 2
