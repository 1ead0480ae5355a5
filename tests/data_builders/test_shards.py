"""Every builder in shards: what joining them gives is what one process gives, byte for byte."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from alignment.__main__ import commands
from alignment.cli import parse
from alignment.llm.ledger import Ledger
from alignment.llm.program import FakeLLM
from alignment.llm.protocol import Reply, Request
from alignment.llm.rows import Reject, Row
from data_builders.cdf import Options, builder
from tests.data_builders import (
    test_cdf,
    test_clair,
    test_distill_pairs,
    test_elical,
    test_flame,
    test_judgments,
    test_off_policy_judge,
    test_popalign,
    test_reward_groups,
    test_rlcd,
    test_stronger_preferred,
    test_triplets,
)
from tests.data_builders.running import build, report, write

SHARDS = 3

PROMPTS: list[Row] = [{"prompt": f"question {index % 20}"} for index in range(24)]
ANSWERED: list[Row] = [{**row, "response": f"answer {i % 3}"} for i, row in enumerate(PROMPTS)]
FAULTY: list[Row] = [{"prompt": "endless", "response": "endless"}, {"prompt": ""}]
GROUPS: list[Row] = [test_off_policy_judge.group(i % 7, 0.1, 0.9, 0.9, i / 24) for i in range(24)]

CASES: dict[str, tuple[list[Row], tuple[object, ...]]] = {
    "cdf": ([*PROMPTS, {"prompt": "odd"}, {"prompt": "silent"}], test_cdf.MODELS),
    "clair": ([*ANSWERED, *FAULTY], ("--model", f"program:{test_clair.__name__}.reviser")),
    "context_distillation": ([*PROMPTS, {"prompt": "no end"}], test_rlcd.MODEL),
    "distill_pairs": ([*PROMPTS, {"prompt": "long"}], test_distill_pairs.NAMES),
    "elical": ([*PROMPTS, {"prompt": "mumble"}], (*test_elical.MODEL, "--samples", 4)),
    "flame": ([*PROMPTS, {"prompt": "an even fact"}, {"prompt": "mumble"}], test_flame.MODELS),
    "judgments": ([*PROMPTS, {"prompt": "silence 1"}], test_judgments.ANSWER),
    "off_policy_judge": (GROUPS, test_off_policy_judge.JUDGE),
    "on_policy_judge": (
        [*PROMPTS, {"prompt": "first"}],
        ("--model", f"{test_distill_pairs.HERE}.teacher", *test_off_policy_judge.JUDGE),
    ),
    "popalign": (
        [*PROMPTS, {"prompt": "refuse"}],
        (*test_popalign.MODEL, *test_popalign.JUDGE, "--check", 5, "--quotas", '{"prefix": 7}'),
    ),
    "reward_groups": (
        [*PROMPTS, test_reward_groups.given(3, 3, 1)],
        (
            *(*test_reward_groups.ASK, "--model", f"{test_reward_groups.HERE}.writer"),
            *("--pairs", "best_random"),
        ),
    ),
    "rlcd": (
        [*PROMPTS, {"prompt": "alike"}],
        (*test_rlcd.MODEL, *test_rlcd.LABELS, "--label", "rescore"),
    ),
    "stronger_preferred": ([*ANSWERED, *FAULTY], test_stronger_preferred.MODEL),
    "triplets": (
        [*PROMPTS, {"prompt": ""}],
        (*test_triplets.WRITER, *test_triplets.JUDGE, "--samples", 9),
    ),
}


def test_every_builder_is_tried_in_shards():
    assert set(CASES) == set(commands("data_builders"))


@pytest.mark.parametrize("name", CASES)
def test_shards_joined_are_what_one_process_makes(tmp_path: Path, name: str):
    rows, words = CASES[name]
    build(tmp_path / "whole", name, rows, *words)
    output = tmp_path / "parts" / "out.jsonl"
    write(tmp_path / "parts" / "in.jsonl", rows)
    for number in range(1, SHARDS + 1):
        with pytest.raises(SystemExit) as ended:
            build(tmp_path / "parts", name, rows, *words, "--shard", f"{number}/{SHARDS}")
        assert ended.value.code == 0
        assert not output.exists()
    build(tmp_path / "parts", name, rows, *words)
    for file in ("out.jsonl", "out.jsonl.rejects.jsonl"):
        made, expected = (tmp_path / which / file for which in ("parts", "whole"))
        assert made.exists() == expected.exists(), file
        assert not made.exists() or made.read_bytes() == expected.read_bytes(), file
    whole, joined = report(tmp_path / "whole"), report(tmp_path / "parts")
    own = ("usage", "command", "options")  # of the run that has written the report
    assert {k: v for k, v in joined.items() if k not in own} == {
        k: v for k, v in whole.items() if k not in own
    }
    assert sum(of["calls"] for of in whole["usage"].values()) > len(rows) / 2
    assert sum(of["calls"] - of["failed"] for of in joined["usage"].values()) == 0
    with Ledger(tmp_path / "whole" / "out.jsonl.ledger") as ledger:
        calls = ledger.outcomes()
    with Ledger(f"{output}.ledger") as ledger:
        assert ledger.outcomes() == calls
    assert not Path(f"{output}.shards").exists()


def test_what_depends_on_all_rows_waits_until_shards_are_joined(tmp_path: Path):
    """Of `cdf --split` a shard draws and scores the answers, by which all prompts are ranked."""
    source = write(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(6)])
    words = ["--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--split"]
    make = builder(parse(Options, [*words, *test_cdf.MODELS, "--shard", "1/2"], "alignment build"))
    asked: Counter[str] = Counter()

    def answer(request: Request) -> str | Reply:
        asked[request.verb] += 1
        return Reply(logps=((-1.0,),)) if request.verb == "score" else "so so"

    async def build_one() -> None:
        await make({"prompt": "p0"}, FakeLLM(answer))

    with pytest.raises(Reject, match="when shards are joined"):
        asyncio.run(build_one())
    assert asked == {"chat": 1, "score": 1}
