"""From options to a model: what each name asks for, and options that do not fit together."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError, parse
from alignment.llm.connect import connect
from alignment.llm.ledger import Ledger
from alignment.llm.options import CallOptions
from tests.llm.batch_server import Line, answered, serve_batches


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "batch", "--requests-per-minute", "5"], "`mode: batch` knows no rates"),
        (["--mode", "batch", "--tokens-per-minute", "5"], "`mode: batch` knows no rates"),
        (["--batch-requests", "0"], "`batch_requests` is 0; it must be at least 1"),
        (["--poll-interval", "0"], "`poll_interval` is 0.0; it must be above 0"),
        (["--mode", "bach"], "`--mode` expects one of live, batch, got `bach`"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_told_in_one_line(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        parse(CallOptions, words, "alignment")


@pytest.mark.parametrize("model", ["some/folder", "vllm:some/folder", "program:json.dumps"])
def test_a_model_in_this_process_has_no_batches(model: str, tmp_path: Path):
    with pytest.raises(UserError, match="needs the address of a provider"):
        connect(model, None, Ledger(), CallOptions(mode="batch"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
    files = ["--prompts", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "o.jsonl")]
    with pytest.raises(UserError, match="needs the address of a provider"):
        dispatch(["generate", "--model", model, "--mode", "batch", *files])


def test_both_orders_of_all_comparisons_are_one_batch(tmp_path: Path):
    """Five comparisons are ten calls; a judge that always says A prefers nobody."""
    for name, response in (("a", "fine"), ("b", "good")):
        rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "response": response} for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def judge(line: Line) -> Line:
        return answered(line, "Verdict: A")

    with serve_batches() as provider:
        provider.answer = judge
        dispatch(
            [
                *("eval", "winrate", "--answers", str(tmp_path / "a.jsonl"), "--baseline"),
                *(str(tmp_path / "b.jsonl"), "--output", str(tmp_path / "out"), "--mode", "batch"),
                *("--poll-interval", "0.05", "--judge-model", "tiny", "--judge-url", provider.url),
            ]
        )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["win_rate"], results["position_consistency"]) == (0.5, 0.0)
    assert [len(lines) for lines in provider.lines] == [10]
