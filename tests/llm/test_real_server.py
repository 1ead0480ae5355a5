"""A real server as policy and judge: stopped half way and run again, it is asked nothing twice."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.core.rows import read_rows
from tests.llm.real_server import (
    Served,
    alignment,
    finished_calls,
    running,
    save_parrot,
    stop_half_way_and_rerun,
)

pytestmark = pytest.mark.slow

PROMPTS = 30
SAYS = "## Revised answer\nA"
"""An answer, a revision of any answer, and a verdict."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(save_parrot(tmp_path_factory.mktemp("parrot"), SAYS)) as server:
        yield server


def test_policy_and_judge_stopped_half_way_repeat_no_call(served: Served, tmp_path: Path):
    """The judge ends with `A` like the policy, whichever answer comes first."""
    prompts, answers, baseline = (tmp_path / name for name in ("p.jsonl", "a.jsonl", "b.jsonl"))
    rows = [{"prompt": f"question {index}"} for index in range(PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline.write_text("".join(json.dumps({**row, "response": "B"}) + "\n" for row in rows))
    model = ("--model", served.model, "--base-url", served.url, "--concurrency", 2)
    stop_half_way_and_rerun(
        *(served, Path(f"{answers}.ledger"), PROMPTS),
        *("generate", "--prompts", prompts, "--output", answers, *model),
    )
    made = [row for _, row in read_rows(answers)]
    assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
    assert {row["response"] for row in made} == {SAYS}
    assert made[0]["meta"]["fingerprint"]

    verdicts = tmp_path / "out" / "verdicts.jsonl"
    judge = ("--judge-model", served.model, "--judge-url", served.url, "--concurrency", 2)
    output = stop_half_way_and_rerun(
        *(served, Path(f"{verdicts}.ledger"), 2 * PROMPTS),
        *("eval", "winrate", "--answers", answers, "--baseline", baseline),
        *("--output", verdicts.parent, *judge),
    )
    results = json.loads((verdicts.parent / "results.json").read_text())
    assert (results["win_rate"], results["n_prompts"], results["unjudged"]) == (0.5, PROMPTS, 0)
    assert results["position_consistency"] == 0.0
    assert output.startswith("win rate 0.500, 95% interval [0.500, 0.500]")


def test_a_quickstart_stopped_half_way_repeats_no_call(served: Served, tmp_path: Path):
    """The policy runs in the command, reviser and judge on the server; it is stopped while pairs
    are built. The server has answered what the ledgers hold, and once when it was looked up."""
    prompts, run = tmp_path / "p.jsonl", tmp_path / "run"
    rows = [{"prompt": f"question {index}"} for index in range(PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("quickstart", "--output", run, "--model", served.model, "--prompts", prompts),
        *("--judge-url", served.url, "--judge-model", served.model),
        *("--held-out-prompts", 6, "--steps", 2, "--batch-size", 4),
        *("--max-tokens", 8, "--learning-rate", 0.01),
    ]
    ledgers = [run / f"{name}.jsonl.ledger" for name in ("pairs", "judged/verdicts")]
    before = served.calls()
    job = alignment(*words)
    while job.poll() is None and finished_calls(ledgers[0]) < 5:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert errors.rstrip().endswith("run the same command to go on")
    assert 5 <= finished_calls(ledgers[0]) < PROMPTS - 6
    job = alignment(*words)
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert finished_calls(ledgers[0]) == PROMPTS - 6
    assert served.calls() - before == 1 + sum(map(finished_calls, ledgers))
    results = json.loads((run / "results.json").read_text())
    assert (results["pairs"], results["n_prompts"]) == (PROMPTS - 6, 6)


def test_a_model_that_the_server_lacks_is_told_in_one_line(served: Served, tmp_path: Path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "p"}\n')
    job = alignment(
        *("generate", "--prompts", prompts, "--output", tmp_path / "a.jsonl"),
        *("--model", "other", "--base-url", served.url),
    )
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 2
    assert errors.startswith(f"error: {served.url} has no model `other`")
    assert errors.count("\n") == 1
    assert not (tmp_path / "a.jsonl").exists()
