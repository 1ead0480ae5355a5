"""Affix pairs: what comes along, files of one's own, and the prompts they make."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.program import FakeLLM
from alignment.llm.protocol import Reply
from alignment.llm.rows import Reject
from data_builders.affixes import Affixes, AffixOptions, read_affixes
from data_builders.statistics import edit_distance
from data_builders.transcript import Conversation

EARLIER = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye."},
]


def affixes(**options: Any) -> Affixes:
    return Affixes(AffixOptions(input=Path("i"), output=Path("o.jsonl"), model="m", **options))


@pytest.mark.parametrize(
    ("attribute", "count"), [("harmlessness", 16), ("helpfulness", 1), ("outline", 3)]
)
def test_the_affixes_that_come_along_differ_in_few_words(attribute: str, count: int):
    pairs = read_affixes(attribute)
    assert [pair.place for pair in pairs] == list(range(count))
    assert len({pair.positive for pair in pairs}) == count
    for _, positive, negative, question in pairs:
        assert positive != negative
        differing = set(positive.split()) ^ set(negative.split())
        assert len(differing) <= 8
        assert edit_distance(positive, negative) <= 16
        assert question.endswith("?")
        assert "(" not in positive + negative


def test_a_file_of_ones_own_is_read(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text('- {positive: a calm reply, negative: a cross reply, question: "Which?"}\n')
    assert read_affixes(str(path)) == [(0, "a calm reply", "a cross reply", "Which?")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "positive: x",
        "- {positive: x}",
        "- 3",
        "- {positive: [",
        "- {positive: 1, negative: x, question: q}",
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="must hold a list of affix pairs"):
        read_affixes(str(path))


def test_an_unknown_attribute_is_told_with_the_nearest():
    with pytest.raises(UserError, match="unknown attribute `harmles`; did you mean `harmlessness`"):
        read_affixes("harmles")
    with pytest.raises(UserError, match=r"cannot read missing\.yaml"):
        read_affixes("missing.yaml")


def test_the_affix_depends_on_seed_and_prompt_alone():
    conversations = [Conversation({"prompt": f"p{index}"}) for index in range(200)]
    drawn = [affixes().of(conversation)[0].place for conversation in conversations]
    assert drawn == [affixes().of(conversation)[0].place for conversation in conversations]
    assert drawn != [affixes(seed=1).of(conversation)[0].place for conversation in conversations]
    assert set(drawn) == set(range(16))


def test_a_chat_gets_a_system_message_after_the_one_it_has():
    system = {"role": "system", "content": "Be brief."}
    made = affixes(format="chat").prompt(
        Conversation({"prompt": [system, *EARLIER]}), "kind", "rude"
    )
    assert isinstance(made, list)
    assert made[1:] == EARLIER
    assert made[0]["content"].startswith("Be brief.\n\n")
    assert made[0]["content"].index("rude") < made[0]["content"].index("kind")


def test_a_chat_without_earlier_replies_is_told_of_none():
    made = affixes(format="chat").prompt(Conversation({"prompt": "Hi."}), "kind", "rude")
    assert isinstance(made, list)
    assert "kind" in made[0]["content"]
    assert "rude" not in made[0]["content"]
    assert affixes(format="chat").prompt(Conversation({"prompt": EARLIER})) == EARLIER


def draw(answers: Sequence[str | Reply], **options: Any) -> tuple[FakeLLM, Any]:
    llm = FakeLLM(answers)
    return llm, asyncio.run(affixes(**options).draw(llm, "text"))


def test_an_answer_that_fails_is_drawn_anew():
    llm, drawn = draw(["no end", "\n\nHuman:", " Yes.\n\nHuman:"])
    assert drawn == ("Yes.", 2)
    assert [request.sample for request in llm.requests] == [0, 1, 2]
    assert {request.sampling.max_tokens for request in llm.requests} == {300}


def test_after_five_more_draws_the_side_is_given_up():
    with pytest.raises(Reject, match="none of 6 draws") as caught:
        draw(["no end"] * 5 + ["\n\nHuman:", " Yes.\n\nHuman:"])
    assert caught.value.reason == "empty"
    assert len(caught.value.details["replies"]) == 6


def test_a_chat_must_end_by_itself():
    _, drawn = draw([Reply("cut", "length"), " ", "Yes.\n"], format="chat")
    assert drawn == ("Yes.", 2)
    with pytest.raises(Reject) as caught:
        draw([Reply("cut", "length")], format="chat", resamples=0)
    assert caught.value.reason == "truncated"


def test_a_negative_number_of_draws_is_refused():
    with pytest.raises(ValueError, match="`resamples` is -1"):
        affixes(resamples=-1)
