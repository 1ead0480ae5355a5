"""CUT online in the small world: killed in every stage, with judges that fail at times."""

from collections import Counter
from pathlib import Path

import pytest

from alignment.core.rows import read_rows
from tests.rounds.killed import survives_kills
from tests.rounds.small import config


@pytest.mark.slow
def test_cut_online_ends_the_same_when_it_is_killed_in_every_stage(
    small_world: Path, tmp_path: Path
):
    loop = config(
        small_world,
        tmp_path / "cut.yaml",
        method="cut",
        builder_model="program:tests.rounds.counted.criticise",
        build={"concurrency": 4},
    )
    results = survives_kills(loop, tmp_path)
    first, second = results["rounds"]
    for row in (first, second):
        data = [r for _, r in read_rows(tmp_path / "whole" / row["data"])]
        signs = Counter(r["judgment"] is None for r in data)
        assert signs[True] <= signs[False] // 4
        assert not [r for r in data if "ERROR" in str(r["judgment"])]
        assert row["dropped"]["judgment_error"] > 0
        assert row["cost"]["calls"] > 0
        assert row["examples"] == len(data)
    prompts = [
        {str(r["prompt"]) for _, r in read_rows(path)}
        for path in (tmp_path / "whole").glob("round-*/prompts-*/prompts.jsonl")
    ]
    assert [len(several) for several in prompts] == [48, 48]
    assert not prompts[0] & prompts[1]
