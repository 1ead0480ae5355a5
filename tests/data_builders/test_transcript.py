"""Conversations as text: turns, labels, descriptions, and what a base model makes of them."""

from typing import Any

import pytest

from alignment.llm.rows import Reject
from data_builders.transcript import Conversation, clean

USER = {"role": "user", "content": "How are you?"}
ASSISTANT = {"role": "assistant", "content": "Fine.\n\nAnd you?"}
THANKS = {"role": "user", "content": "Fine, thanks."}
HH = "\n\nHuman: How are you?\n\nAssistant: Fine.\n\nAnd you?\n\nHuman: Fine, thanks.\n\nAssistant:"


@pytest.mark.parametrize(
    "prompt",
    [HH, f"{HH} ", HH.lstrip(), HH.removesuffix("\n\nAssistant:"), [USER, ASSISTANT, THANKS]],
)
def test_a_transcript_is_the_same_conversation_as_its_messages(prompt: Any):
    conversation = Conversation({"prompt": prompt})
    assert conversation.messages == [USER, ASSISTANT, THANKS]
    assert conversation.replies == 1
    assert conversation.as_transcript() == HH
    assert conversation.prompt == prompt


def test_a_plain_text_is_one_turn_of_the_user():
    conversation = Conversation({"prompt": "Tell me about the Human: Assistant: labels."})
    assert [message["role"] for message in conversation.messages] == ["user"]
    assert conversation.replies == 0
    assert conversation.as_transcript("a kind reply") == (
        "\n\nHuman: Tell me about the Human: Assistant: labels.\n\nAssistant (a kind reply):"
    )


def test_a_whole_conversation_of_hh_rlhf_gives_its_prompt():
    row = {"chosen": f"{HH} You are welcome.", "rejected": f"{HH} Hm."}
    assert Conversation(row).prompt == HH


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "no transcript"}, "no_prompt"),
        ({"prompt": [{**USER, "content": [{"type": "image"}]}]}, "bad_type"),
        ({"prompt": {"text": "Hi."}}, "bad_type"),
    ],
)
def test_a_row_without_a_conversation_of_text_is_refused(row: dict[str, Any], reason: str):
    with pytest.raises(Reject) as caught:
        Conversation(row)
    assert caught.value.reason == reason


def test_a_system_message_stands_at_the_beginning_without_a_label():
    prompt = [{"role": "system", "content": "Be brief."}, USER]
    assert Conversation({"prompt": prompt}).as_transcript() == (
        "Be brief.\n\nHuman: How are you?\n\nAssistant:"
    )


def test_descriptions_stand_between_label_and_colon():
    text = Conversation({"prompt": HH}).as_transcript("a kind reply", "an unkind reply")
    assert text == (
        "\n\nHuman: How are you?\n\nAssistant (an unkind reply): Fine.\n\nAnd you?"
        "\n\nHuman: Fine, thanks.\n\nAssistant (a kind reply):"
    )


@pytest.mark.parametrize(
    ("prompt", "joined"),
    [
        (HH, f"{HH} Yes."),
        (f"{HH} ", f"{HH} Yes."),
        (HH.removesuffix("\n\nAssistant:"), f"{HH} Yes."),
    ],
)
def test_prompt_and_response_of_a_transcript_join_to_a_transcript(prompt: str, joined: str):
    assert prompt + Conversation({"prompt": prompt}).response("Yes.") == joined
    assert Conversation({"prompt": "Really?"}).response("Yes.") == "Yes."


@pytest.mark.parametrize("prompt", [f"{HH} You are welcome.", [USER, ASSISTANT], "\n\nAssistant:"])
def test_a_conversation_that_ends_with_the_assistant_is_refused(prompt: Any):
    with pytest.raises(Reject) as caught:
        Conversation({"prompt": prompt})
    assert caught.value.reason == "prompt_ends_with_assistant"


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        (" Yes.\n\nHuman: Why?", "Yes."),
        (" Yes.\nOr no.\n\nHuman: Why?", "Yes.\nOr no."),
        (" One.\n\nTwo.\n\nThree.\n\nHuman: Why?\n\nAssistant: So.", "One.\n\nTwo.\n\nThree."),
        (" First line\nsecond line without an end Human: Why?", "First line"),
        (" Yes.</s>Human: Why?", "Yes."),
        (" Yes.<|endoftext|>more\n\nHuman: Why?", "Yes."),
        (" a note\n\nAssistant: Yes.\n\nAssistant: No.\n\nHuman: Why?", "Yes.\n\nAssistant: No."),
        (" x\n\nAssistant (a kind reply): Yes.\n\nHuman (a kind one): Why?", "Yes."),
    ],
)
def test_the_turn_is_cut_out_of_a_continuation(text: str, turn: str):
    assert clean(text) == turn


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_next_turn"),
        (" Yes, and it goes on\nand on", "no_next_turn"),
        (" Yes.</s>", "no_next_turn"),
        (" Yes. Human: Why?", "no_line_break"),
        ("\n\nHuman: Why?", "empty"),
        (" \n\n \n\nHuman: Why?", "empty"),
        ("</s>Human: Why?", "empty"),
        (" note\n\nAssistant:\n\nHuman: Why?", "empty"),
    ],
)
def test_a_continuation_without_a_turn_says_why(text: str, reason: str):
    with pytest.raises(Reject) as caught:
        clean(text)
    assert caught.value.reason == reason
