"""The world: its checker, its split, its flaws, and the programs that stand in for models."""

import pytest
from rapidfuzz.distance import Levenshtein

from alignment.llm.prompts import Template
from alignment.llm.protocol import CallError, Request
from alignment.quickstart import world
from data_builders.base import PROMPTS
from data_builders.clair import parse_revision


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("sort: owl fox hen", "fox hen owl"),
        ("reverse: owl fox hen", "hen fox owl"),
        ("count: owl fox hen", "3"),
        ("last: owl fox hen", "hen"),
    ],
)
def test_an_answer_is_right_with_or_without_a_full_stop(prompt: str, answer: str):
    assert world.is_right(prompt, answer)
    assert world.is_right(prompt, f" {answer}.\n")
    assert not world.is_right(prompt, f"{answer}!")
    assert not world.is_right(prompt, f"{answer} {answer}")
    assert not world.is_right(prompt, "")


def test_what_is_no_prompt_of_the_world_is_refused():
    for text in ("", "sort", "sort: ", "shout: owl fox"):
        with pytest.raises(ValueError, match="no prompt of this world"):
            world.is_right(text, "owl")


def test_no_set_of_words_is_on_both_sides_of_the_split():
    sides = {
        split: {
            frozenset(prompt.partition(": ")[2].split()) for prompt in world.prompts(split, 4000, 0)
        }
        for split in ("train", "held_out")
    }
    assert len(sides["train"]) > 2000
    assert len(sides["held_out"]) > 1000
    assert not sides["train"] & sides["held_out"]


def test_the_split_of_a_prompt_depends_neither_on_seed_nor_on_word_order():
    train = {prompt for seed in range(5) for prompt in world.prompts("train", 1000, seed)}
    held_out = {prompt for seed in range(5) for prompt in world.prompts("held_out", 1000, seed)}
    assert not train & held_out
    assert world.split_of(["owl", "fox"]) == world.split_of(["fox", "owl"])


def test_prompts_are_distinct_repeatable_and_of_every_task():
    drawn = world.prompts("train", 3000, 7)
    assert len(set(drawn)) == 3000
    assert drawn == world.prompts("train", 3000, 7)
    assert drawn[:100] == world.prompts("train", 100, 7)
    assert drawn != world.prompts("train", 3000, 8)
    assert {prompt.partition(":")[0] for prompt in drawn} == set(world.TASKS)


def test_every_length_is_as_common_in_demonstrations_as_in_held_out_prompts():
    shown = [row.prompt for row in world.demonstrations(6000, 0)]
    for drawn in (shown, world.prompts("train", 1500, 0), world.prompts("held_out", 400, 0)):
        lengths = [len(prompt.partition(": ")[2].split()) for prompt in drawn]
        for length in world.LENGTHS:
            assert 0.2 < lengths.count(length) / len(lengths) < 0.45


def test_about_a_fifth_of_all_sets_of_words_is_held_out():
    pairs = [(a, b) for a in world.WORDS for b in world.WORDS if a < b]
    share = sum(world.split_of(pair) == "held_out" for pair in pairs) / len(pairs)
    assert 0.12 < share < 0.28  # 276 sets: the standard deviation is 0.024


def test_the_stated_share_of_demonstrations_is_wrong():
    rows = world.demonstrations(2000, 3)
    wrong = [row for row in rows if not world.is_right(*row)]
    assert len(wrong) == 700
    assert {row.prompt.partition(":")[0] for row in wrong} == set(world.TASKS)
    assert all(world.split_of(row.prompt.partition(": ")[2].split()) == "train" for row in rows)
    stops = sum(row.answer.endswith(".") for row in rows)
    assert 900 < stops < 1100


def test_a_revision_is_right_and_no_right_answer_is_nearer():
    for prompt, answer in world.demonstrations(300, 0):
        better = world.revision(prompt, answer)
        distance = Levenshtein.distance(answer, better)
        assert world.is_right(prompt, better)
        assert all(distance <= Levenshtein.distance(answer, a) for a in world.accepted(prompt))
        assert (better == answer) == world.is_right(prompt, answer)


def test_a_revision_keeps_the_style_of_the_answer():
    assert world.revision("sort: owl fox hen", "owl fox hen.") == "fox hen owl."
    assert world.revision("count: owl fox hen", "4") == "3"


def test_the_reviser_answers_the_prompt_of_the_builder():
    template = Template(PROMPTS / "clair_improve.txt", {"prompt", "response"})
    messages = template.user_message(prompt="reverse: owl fox", response="owl fox.")
    reply = parse_revision(world.revise(Request("chat", messages)))
    assert reply.answer == "fox owl."
    assert reply.rationale


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [("fox owl", "owl", "A"), ("owl", "fox owl.", "B"), ("fox owl", "fox owl.", "tie")],
)
def test_the_judge_prefers_the_right_answer(first: str, second: str, verdict: str):
    text = "\n".join(
        f"[{name} 0123abcd]\n{part}\n[/{name} 0123abcd]"
        for name, part in (("task", "sort: owl fox"), ("answer_A", first), ("answer_B", second))
    )
    assert world.judge(Request("chat", text)).endswith(f"\nVerdict: {verdict}")


def test_a_request_without_the_sections_is_a_failed_call():
    with pytest.raises(CallError, match="no section answer_A, answer_B"):
        world.judge(Request("chat", "[task 0123abcd]\nsort: owl fox\n[/task 0123abcd]"))
