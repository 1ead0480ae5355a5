"""DistiLLM-2 in rounds: the anchors of the first go to the others."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment.cli import UserError
from alignment.loops.distillm2 import DistiLLM2Resampled, anchors


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


@pytest.mark.parametrize("number", [1, 2])
def test_curricula_stand_where_the_round_does_and_anchors_come_from_the_first(
    tmp_path: Path, number: int
):
    metrics(tmp_path / "metrics.jsonl", gaps(10, 0.4, 0.3))
    at = SimpleNamespace(
        number=number, trained=[tmp_path] * (number - 1), options=SimpleNamespace(rounds=4)
    )
    told = DistiLLM2Resampled(teacher="some/teacher").training(at)  # type: ignore[arg-type]
    expected: dict[str, float] = {"epochs_before": number - 1, "epochs_in_all": 4}
    if number == 2:
        expected |= {"anchor_chosen": 0.4, "anchor_rejected": 0.3}
    assert told == {"teacher_model_name_or_path": "some/teacher", "objective_kwargs": expected}


def test_with_a_longer_interval_of_logging_the_first_that_is_logged_counts(tmp_path: Path):
    found = anchors(metrics(tmp_path / "m.jsonl", gaps(20, 0.5, 0.1), gaps(40, 9.0, 9.0)))
    assert found == {"anchor_chosen": 0.5, "anchor_rejected": 0.1}
    with pytest.raises(UserError, match=r"has no gaps: set `train\.logging_steps`"):
        anchors(metrics(tmp_path / "none.jsonl", {"step": 1, "loss": 1.0}))
