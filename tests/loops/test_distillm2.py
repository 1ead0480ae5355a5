"""DistiLLM-2 in rounds: the anchors of the first go to the others."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.loops.distillm2 import anchors


def metrics(path: Path, *rows: Mapping[str, float]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gaps(step: int, chosen: float, rejected: float) -> dict[str, float]:
    return {"step": step, "loss": 1.0, "gaps/chosen": chosen, "gaps/rejected": rejected}


def test_anchors_are_the_mean_gaps_of_the_first_steps(tmp_path: Path):
    """Steps 5 and 10 count, step 15 does not: 0.3 and 0.2."""
    rows = (gaps(5, 0.2, 0.1), gaps(10, 0.4, 0.3), gaps(15, 9.0, 9.0), {"step": 15, "runtime": 1})
    found = anchors(metrics(tmp_path / "m.jsonl", *rows))
    assert found == pytest.approx({"anchor_chosen": 0.3, "anchor_rejected": 0.2})


def test_with_a_longer_interval_of_logging_the_first_that_is_logged_counts(tmp_path: Path):
    found = anchors(metrics(tmp_path / "m.jsonl", gaps(20, 0.5, 0.1), gaps(40, 9.0, 9.0)))
    assert found == {"anchor_chosen": 0.5, "anchor_rejected": 0.1}
    with pytest.raises(UserError, match=r"has no gaps: set `train\.logging_steps`"):
        anchors(metrics(tmp_path / "none.jsonl", {"step": 1, "loss": 1.0}))
