"""LIONs' online DPO: what may be set, and what a round is made of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.loops.lions import LIONsOnlineDPO
from alignment.rounds.loop import load_loop
from alignment.rounds.options import Asked
from alignment.rounds.samples import VERSION


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


@pytest.mark.parametrize(("old_share", "mixed"), [(0.0, False), (0.5, True)])
def test_pairs_of_best_and_worst_are_mixed_with_old_ones_where_that_is_asked_for(
    tmp_path: Path, old_share: float, mixed: bool
):
    done: list[tuple[str, dict[str, Any]]] = []

    def rows(name: str, _: Any, settings: dict[str, Any]) -> Path:
        done.append((name, settings))
        return tmp_path / name

    def build(verb: str, source: Path, **options: Any) -> Path:
        done.append((verb, {"input": source, **options}))
        return tmp_path / "pairs"

    at: Any = SimpleNamespace(
        **{"prompts": tmp_path / "prompts", "earlier": [tmp_path / "round-1"], "seed": 1},
        **{"builder": Asked("rater", None), "rows": rows, "build": build},
        generate=lambda prompts, **options: tmp_path / f"{options['samples']} answers",
    )
    data = LIONsOnlineDPO(old_pairs=tmp_path / "old", old_share=old_share).data(at)
    assert done[0] == ("groups", {"answers": tmp_path / "5 answers", "version": VERSION})
    judged = {"pairs": "best_worst", "judge_model": "rater", "judge_url": None}
    assert done[1] == ("reward_groups", {"input": tmp_path / "groups", **judged})
    if mixed:
        name, settings = done[2]
        assert name == "mixture"
        assert settings["old"] == [tmp_path / "old", tmp_path / "round-1"]
    assert data == tmp_path / ("mixture" if mixed else "pairs")
