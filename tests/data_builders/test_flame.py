"""A pair for every prompt by its instruction, and one by facts where it asks for facts."""

from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.prompts import as_messages, as_text, sections
from alignment.llm.protocol import Request
from tests.data_builders.checks import survives_a_kill, trains
from tests.data_builders.running import build, reasons, rejects, write
from tests.llm.server import Answer, Body, last_words

LONG, TRUE = "a long answer full of claims", "it is so"


def policy(request: Request) -> str:
    return (LONG, TRUE)[request.sample]


def reply(text: str) -> str:
    """Facts are asked for where the task says so.

    Of two answers the longer one is the better, by facts the shorter one.
    """
    shown = sections(text)
    task = shown["task"]
    if "answer_A" not in shown:
        if "mumble" in task:
            return "Who knows."
        return f"It rests on something.\nFact-based: {'yes' if 'fact' in task else 'no'}"
    by_facts = "how true they are" in text
    if "even" in task and not by_facts:
        return "Verdict: tie"
    longer = len(shown["answer_A"]) > len(shown["answer_B"])
    return f"Verdict: {'A' if longer != by_facts else 'B'}"


def judge(request: Request) -> str:
    return reply(as_text(as_messages(request.prompt)))


MODELS = ("--model", f"program:{__name__}.policy", "--judge-model", f"program:{__name__}.judge")


def made(folder: Path, *prompts: str, argv: tuple[str, ...] = MODELS) -> list[dict[str, Any]]:
    return build(folder, "flame", [{"prompt": prompt} for prompt in prompts], *argv)


def test_a_prompt_about_facts_gives_a_pair_by_each_judge(tmp_path: Path):
    by_instruction, by_facts = made(tmp_path, "a fact")
    assert (by_instruction["chosen"], by_instruction["rejected"]) == (LONG, TRUE)
    assert (by_facts["chosen"], by_facts["rejected"]) == (TRUE, LONG)
    criteria = [row["meta"]["criterion"] for row in (by_instruction, by_facts)]
    assert criteria == ["instruction", "facts"]
    assert by_facts["meta"]["on_policy"] == {"chosen": True, "rejected": True}


def test_any_other_prompt_gives_one(tmp_path: Path):
    (row,) = made(tmp_path, "a poem")
    assert row["meta"]["criterion"] == "instruction"
    assert row["meta"]["fact_based"] is False


def test_a_tie_by_one_judge_leaves_the_pair_of_the_other(tmp_path: Path):
    (row,) = made(tmp_path, "an even fact")
    assert row["meta"]["criterion"] == "facts"
    assert reasons(tmp_path) == ["tie"]
    assert rejects(tmp_path)[0]["criterion"] == "instruction"


def test_a_prompt_that_cannot_be_sorted_is_rejected(tmp_path: Path):
    made(tmp_path, "mumble", "a poem")
    assert reasons(tmp_path) == ["unclassified"]


def test_without_a_judge_it_says_what_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match="no judge: give `--judge-model`"):
        made(tmp_path, "a fact", argv=MODELS[:2])


def script(index: int, body: Body) -> Answer:
    """A judge's prompt has a task; else an answer as long as the draw's seed says."""
    words = last_words(body)
    if "task" in sections(words):
        return Answer(reply(words))
    return Answer(f"Answer {'so ' * (body['seed'] % 50)}to {words}.")


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_its_pairs_train(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", [{"prompt": f"fact {i}"} for i in range(12)])
    words = ("build", "flame", "--input", source)
    judged = ("--judge-model", "tiny", "--judge-url", "{url}")
    survives_a_kill(tmp_path, script, *words, *judged, models=2)
    trains(tmp_path, tmp_path / "whole" / "out.jsonl", "dpo")
