"""LIONs' online DPO: what may be set."""

from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.loops.lions import LIONsOnlineDPO
from alignment.rounds.loop import load_loop


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"samples": 1}, "`samples` is 1; best and worst need at least 2"),
        ({"keep_pair": 1.5}, "`keep_pair` is 1.5; it is a probability"),
        ({"old_share": -1}, "`old_share` is -1.0; it must be at least 0"),
        ({"old_pair": "x"}, "did you mean `--old-pairs`?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kwargs: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        load_loop("lions", kwargs)
    assert message in str(caught.value)


def test_old_pairs_that_are_not_there_are_told_before_any_work(tmp_path: Path):
    with pytest.raises(UserError, match="no such file of old pairs"):
        LIONsOnlineDPO(old_pairs=tmp_path / "none.jsonl").check(rounds=1)
