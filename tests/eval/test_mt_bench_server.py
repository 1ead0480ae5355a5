"""MT-Bench against a real server as policy and judge, stopped while it answers and judges."""

import json
from pathlib import Path

import pytest

from tests.llm.real_server import running, save_parrot, stop_half_way_and_rerun

pytestmark = pytest.mark.slow

QUESTIONS = 12
SAYS = "It is good. Rating: [[7]]"
"""An answer to anything, and a rating of it."""


def test_a_run_stopped_half_way_repeats_no_call(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """Two answers and two ratings for each question; the second run is given the answers."""
    questions, out = tmp_path / "questions.jsonl", tmp_path / "out"
    rows = [
        {"question_id": index, "category": "writing", "turns": [f"write {index}", "again"]}
        for index in range(QUESTIONS)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(save_parrot(tmp_path_factory.mktemp("parrot"), SAYS)) as served:
        judge = ("--judge-model", served.model, "--judge-url", served.url, "--concurrency", 2)
        command = ("eval", "mt_bench", "--questions", questions, *judge)
        ledger = tmp_path / "calls.ledger"
        told = stop_half_way_and_rerun(
            *(served, ledger, 4 * QUESTIONS, *command, "--output", out, "--ledger", ledger),
            *("--model", served.model, "--base-url", served.url),
        )
        judged = tmp_path / "judged"
        stop_half_way_and_rerun(
            *(served, judged / "verdicts.jsonl.ledger", 2 * QUESTIONS, *command),
            *("--answers", out / "answers.jsonl", "--output", judged),
        )
    assert f"{2 * QUESTIONS} rows, 0 unjudged" in told
    first, second = (
        json.loads((folder / "results.json").read_text())["models"] for folder in (out, judged)
    )
    (means,) = first.values()
    assert first == second
    assert (means["turn1"], means["turn2"], means["average"]) == (7.0, 7.0, 7.0)
