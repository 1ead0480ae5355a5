"""Context distillation: RLCD's chosen answers as data for SFT."""

from pathlib import Path

import pytest

from alignment.core.groups import group_from_row
from data_builders.affixes import read_affixes
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.conftest import NO, YES
from tests.data_builders.running import build, reasons, report, write
from tests.data_builders.test_rlcd import HH, MODEL, described, script
from tests.llm.real_server import Served

AFFIXES = read_affixes("harmlessness")


def test_a_completion_is_the_answer_under_the_positive_affix(tmp_path: Path):
    prompts = [HH.format("Why?"), "question", "no end"]
    rows = build(tmp_path, "context_distillation", [{"prompt": p} for p in prompts], *MODEL)
    assert [row["prompt"] for row in rows] == prompts[:2]
    for row in rows:
        affix = AFFIXES[row["meta"]["affix"]["index"]]
        assert row["completion"].strip() == f"This is {affix.positive}."
        assert described(row["meta"]["generation_prompt"]["completion"])[-1] == affix.positive
        assert group_from_row(row).prompt == row["prompt"]
    assert reasons(tmp_path) == ["no_next_turn"]


def test_with_rlcd_s_ledger_no_call_is_made(tmp_path: Path):
    rows = [{"prompt": f"question {index}"} for index in range(5)]
    ledger = ("--ledger", tmp_path / "calls.ledger")
    pairs = build(tmp_path / "rlcd", "rlcd", rows, *MODEL, *ledger)
    made = build(tmp_path / "sft", "context_distillation", rows, *MODEL, *ledger)
    assert [row["completion"] for row in made] == [pair["chosen"] for pair in pairs]
    usage = report(tmp_path / "sft")["usage"]["generator"]
    assert (usage["calls"], usage["reused"]) == (0, 5)


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_its_answers_train(tmp_path: Path):
    prompts = [{"prompt": f"question {index}"} for index in range(40)]
    words = ("build", "context_distillation", "--input", write(tmp_path / "in.jsonl", prompts))
    assert len(survives_a_kill(tmp_path, script, *words)) == 40
    trains(tmp_path, tmp_path / "killed" / "out.jsonl", "sft")


@pytest.mark.slow
def test_a_real_server_answers_under_a_system_message(tmp_path: Path, yes_or_no: Served):
    rows = [{"prompt": f"question {index}"} for index in range(8)]
    made = builds_on(
        *(yes_or_no, tmp_path, "build", "context_distillation", "--format", "chat"),
        *("--input", write(tmp_path / "in.jsonl", rows), "--max-tokens", 8),
    )
    assert len(made) == 8
    assert {row["completion"] for row in made} == {YES, NO}
