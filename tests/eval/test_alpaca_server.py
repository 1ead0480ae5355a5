"""AlpacaEval against a real server as policy and judge, stopped while it answers and judges."""

import json
from pathlib import Path

import pytest

from alignment.core.rows import read_rows
from eval.alpaca_judge import saw_swapped
from tests.llm.real_server import running, save_parrot, stop_half_way_and_rerun

pytestmark = pytest.mark.slow

PROMPTS = 20
SAYS = "A"
"""An answer to anything, and a verdict for the answer shown first."""


def test_a_run_stopped_half_way_repeats_no_call(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """An answer and a verdict in the published order, then two verdicts on the same answers.

    The server ignores the wish for log-probs without a word, so verdicts are hard, and the report
    says so. The verdict is always for the first answer: where it is the model's, the model wins.
    """
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    rows = [{"instruction": f"question {i}", "baseline_output": "B"} for i in range(PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(save_parrot(tmp_path_factory.mktemp("parrot"), SAYS)) as served:
        judge = ("--judge-model", served.model, "--judge-url", served.url, "--concurrency", 2)
        command = ("eval", "alpaca_eval", "--prompts", prompts, *judge)
        ledger = tmp_path / "calls.ledger"
        told = stop_half_way_and_rerun(
            *(served, ledger, 2 * PROMPTS, *command, "--output", out, "--ledger", ledger),
            *("--model", served.model, "--base-url", served.url, "--order", "published"),
        )
        judged = tmp_path / "judged"
        stop_half_way_and_rerun(
            *(served, judged / "verdicts.jsonl.ledger", 2 * PROMPTS, *command),
            *("--answers", out / "answers.jsonl", "--output", judged),
        )
    shown_first = sum(saw_swapped(row["instruction"]) for row in rows)
    expected = {out: (100 * shown_first / PROMPTS, 1, None), judged: (50.0, 2, 0.0)}
    for folder, (rate, verdicts, consistency) in expected.items():
        results = json.loads((folder / "results.json").read_text())
        assert (results["win_rate"], results["unjudged"]) == (pytest.approx(rate), 0)
        assert results["hard_verdicts"] == verdicts * PROMPTS
        assert results["weighted_verdicts"] == 0
        assert results["position_consistency"] == consistency
        assert results["repeated_share"] == 1.0
    assert told.startswith(f"win rate {expected[out][0]:.2f} ")
    answers = [row for _, row in read_rows(out / "answers.jsonl")]
    assert {row["output"] for row in answers} == {SAYS}
    assert answers[0]["fingerprint"]
