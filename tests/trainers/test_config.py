"""Settings are completed and checked, and none is taken that would change nothing."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainers.runs import settings


@pytest.mark.parametrize(
    "idle",
    [
        {"label_smoothing_factor": 0.1},
        {"include_num_input_tokens_seen": True},
        {"include_num_input_tokens_seen": "all"},
        {"train_sampling_strategy": "sequential"},
        {"auto_find_batch_size": True},
    ],
    ids=str,
)
def test_a_setting_of_transformers_that_would_change_nothing_is_refused(
    idle: dict[str, Any], tmp_path: Path
):
    (name,) = idle
    with pytest.raises(ValueError, match=f"^{name} is not used here: .*; leave it out$"):
        settings(tmp_path, **idle)


def test_what_would_change_nothing_may_be_said_to_be_off(tmp_path: Path):
    settings(tmp_path, label_smoothing_factor=0.0, include_num_input_tokens_seen=False)
