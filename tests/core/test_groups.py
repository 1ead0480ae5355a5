"""Rows of every known format become groups, and what cannot be used says why."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from alignment.core.groups import (
    CHOSEN,
    NEITHER,
    REJECTED,
    Group,
    Response,
    RowError,
    as_chat,
    binarise,
    group_from_row,
    row_from_group,
    text_of,
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def sides(group: Group) -> tuple[Any, Any]:
    """The chosen and the rejected content of a pair."""
    chosen, rejected = group.responses
    assert (chosen.role, rejected.role) == (CHOSEN, REJECTED)
    return chosen.content, rejected.content


def scored(*rewards: float | None, prompt: str = "Q") -> Group:
    """A group whose responses are named after their place."""
    return Group(prompt, tuple(Response(f"answer {i}", r) for i, r in enumerate(rewards)))


# ---- Pairs ----


def test_a_standard_pair_keeps_its_texts_and_scores():
    row = {"prompt": "Q: 1+1? A:", "chosen": " 2", "rejected": " 3"}
    group = group_from_row({**row, "score_chosen": 8, "score_rejected": 2.5})
    assert group.prompt == "Q: 1+1? A:"
    assert sides(group) == (" 2", " 3")
    assert [response.reward for response in group.responses] == [8.0, 2.5]
    assert not group.conversational


def test_a_conversational_pair_keeps_its_messages():
    prompt = [{"role": "system", "content": "Be brief."}, user("Hi")]
    row = {"prompt": prompt, "chosen": [assistant("Hello")], "rejected": [assistant("What?")]}
    group = group_from_row(row)
    assert group.conversational
    assert group.prompt == prompt
    assert sides(group) == ([assistant("Hello")], [assistant("What?")])


def test_a_conversation_that_repeats_its_prompt_is_cut_to_the_response():
    prompt = [user("Hi")]
    row = {
        "prompt": prompt,
        "chosen": [*prompt, assistant("Hello")],
        "rejected": [*prompt, assistant("What?")],
    }
    assert sides(group_from_row(row)) == ([assistant("Hello")], [assistant("What?")])


def test_the_implicit_prompt_of_conversations_is_the_messages_they_share():
    shared = [user("Hi"), assistant("Hello"), user("Bye")]
    group = group_from_row(
        {"chosen": [*shared, assistant("See you")], "rejected": [*shared, assistant("No")]}
    )
    assert group.prompt == shared
    assert sides(group) == ([assistant("See you")], [assistant("No")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Q: x?\nA: yes", "Q: x?\nA: no", "Q: x?\nA:"),
        ("Q: x?\n\nyellow", "Q: x?\n\nyes", "Q: x?\n\n"),
        ("a  wide gap", "a  wild gap", "a"),
    ],
)
def test_the_implicit_prompt_of_texts_ends_between_words(chosen: str, rejected: str, prompt: str):
    """A word, with the space before it, stays whole: `yellow` against `yes` differ as words."""
    group = group_from_row({"chosen": chosen, "rejected": rejected})
    assert group.prompt == prompt
    assert sides(group) == (chosen[len(prompt) :], rejected[len(prompt) :])


def test_a_plain_prompt_beside_whole_conversations_takes_the_messages_they_share():
    row = {
        "prompt": "Hi",
        "chosen": [user("Hi"), assistant("Hello")],
        "rejected": [user("Hi"), assistant("What?")],
    }
    group = group_from_row(row)
    assert group.prompt == [user("Hi")]
    assert sides(group) == ([assistant("Hello")], [assistant("What?")])


def test_a_plain_prompt_beside_replies_alone_becomes_the_user_message():
    row = {"prompt": "Hi", "chosen": [assistant("Hello")], "rejected": [assistant("What?")]}
    group = group_from_row(row)
    assert group.prompt == [user("Hi")]
    assert sides(group) == ([assistant("Hello")], [assistant("What?")])


# ---- Scored groups ----


def test_responses_with_rewards_become_a_scored_group():
    row = {"prompt": "Q", "responses": ["a", "b", "c"], "rewards": [1, 0.5, -2]}
    group = group_from_row({**row, "models": ["x", None, "z"]})
    assert [(r.content, r.reward, r.role, r.model) for r in group.responses] == [
        ("a", 1.0, NEITHER, "x"),
        ("b", 0.5, NEITHER, None),
        ("c", -2.0, NEITHER, "z"),
    ]


def test_responses_may_be_records_with_text_reward_and_model():
    items = [{"text": "a", "reward": 0.25, "model": "x"}, {"response": "b", "reward": 1}]
    group = group_from_row({"instruction": "Q", "responses": items})
    assert group.prompt == "Q"
    assert [(r.content, r.reward, r.model) for r in group.responses] == [
        ("a", 0.25, "x"),
        ("b", 1.0, None),
    ]


def test_responses_may_be_messages():
    row = {"prompt": [user("Q")], "responses": [[assistant("a")], [assistant("b")]]}
    group = group_from_row(row)
    assert [r.content for r in group.responses] == [[assistant("a")], [assistant("b")]]
    assert [r.reward for r in group.responses] == [None, None]


def test_ultrafeedback_completions_become_a_scored_group():
    completions = [
        {"response": "a", "overall_score": 7.5, "model": "x"},
        {"response": "b", "fine-grained_score": 3, "model": "y"},
    ]
    group = group_from_row({"instruction": "Q", "completions": completions, "source": "evol"})
    assert group.prompt == "Q"
    assert [(r.content, r.reward, r.model) for r in group.responses] == [
        ("a", 7.5, "x"),
        ("b", 3.0, "y"),
    ]


# ---- Single responses ----


@pytest.mark.parametrize(
    ("label", "role"), [(True, CHOSEN), (False, REJECTED), (1, CHOSEN), (0, REJECTED)]
)
def test_an_unpaired_row_is_one_response_with_the_role_of_its_label(label: Any, role: int):
    group = group_from_row({"prompt": "Q", "completion": "a", "label": label})
    assert [(r.content, r.role) for r in group.responses] == [("a", role)]


def test_a_completion_without_label_is_one_to_imitate():
    row = {"prompt": [user("Q")], "completion": [assistant("a")], "reward": 2}
    (response,) = group_from_row(row).responses
    assert (response.content, response.role, response.reward) == ([assistant("a")], CHOSEN, 2.0)


def test_the_last_message_is_the_response_and_the_others_are_the_prompt():
    turns = [user("1"), assistant("2"), user("3"), assistant("4")]
    group = group_from_row({"messages": turns})
    assert group.prompt == turns[:3]
    assert [(r.content, r.role) for r in group.responses] == [([assistant("4")], CHOSEN)]


@pytest.mark.parametrize(("extra", "prompt"), [("", "Sum up.\n\n"), ("1 2", "Sum up.\n\n1 2\n\n")])
def test_an_alpaca_row_joins_instruction_and_input(extra: str, prompt: str):
    group = group_from_row({"instruction": "Sum up.", "input": extra, "output": "3"})
    assert group.prompt == prompt
    assert [r.content for r in group.responses] == ["3"]


@pytest.mark.parametrize("judgment", [None, "", " \n"])
def test_a_response_without_a_found_fault_is_one_to_imitate(judgment: str | None):
    group = group_from_row({"prompt": "Q", "completion": "a", "judgment": judgment})
    assert [(r.content, r.role, r.twin) for r in group.responses] == [("a", CHOSEN, None)]


def test_a_judged_response_is_read_under_its_prompt_and_under_prompt_and_judgment():
    group = group_from_row({"prompt": "Q {x}\n", "completion": "a", "judgment": " {wrong} "})
    plain, judged = group.responses
    assert (plain.content, plain.role, plain.prompt, plain.twin) == ("a", REJECTED, None, None)
    assert (judged.content, judged.role, judged.twin) == ("a", REJECTED, 0)
    assert isinstance(judged.prompt, str)
    assert judged.prompt.startswith("Q {x}")
    assert judged.prompt.endswith("{wrong}\n")


def test_a_judgment_of_a_conversation_joins_the_last_turn_of_the_prompt():
    turns = [user("1"), assistant("2"), user("3"), assistant("4")]
    plain, judged = group_from_row({"messages": turns, "judgment": "wrong"}).responses
    assert judged.content == plain.content == [assistant("4")]
    assert isinstance(judged.prompt, list)
    assert judged.prompt[:2] == turns[:2]
    assert judged.prompt[2]["content"].startswith("3")
    assert judged.prompt[2]["content"].endswith("wrong")
    assert turns[2] == user("3")


def test_plain_text_can_be_read_as_turns_of_a_chat():
    group = as_chat(group_from_row({"instruction": "Sum up.", "input": "1 2", "output": " 3"}))
    assert group.prompt == [user("Sum up.\n\n1 2")]
    assert [r.content for r in group.responses] == [[assistant("3")]]
    _, judged = as_chat(
        group_from_row({"prompt": "Q", "completion": "a", "judgment": "wrong"})
    ).responses
    assert isinstance(judged.prompt, list)
    assert [message["role"] for message in judged.prompt] == ["user"]
    assert as_chat(group) is group


def test_columns_that_hold_nothing_do_not_choose_the_format():
    row = {"prompt": "Q", "completion": "a", "chosen": None, "rejected": None, "messages": None}
    assert group_from_row(row).responses[0].content == "a"


def test_meta_is_kept_whatever_its_type():
    row = {"prompt": "Q", "completion": "a"}
    assert group_from_row({**row, "meta": {"seed": 3}}).meta == {"seed": 3}
    assert group_from_row({**row, "meta": "note"}).meta == {"meta": "note"}
    assert group_from_row(row).meta == {}


# ---- Rows that cannot be used ----

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
GROUP = {"prompt": "Q", "responses": ["a", "b"], "rewards": [1, 0]}


@pytest.mark.parametrize(
    ("row", "reason", "names"),
    [
        ({"text": "abc"}, "unknown_format", "text"),
        ({"chosen": "a", "prompt": "Q"}, "unknown_format", "chosen"),
        ({**PAIR, "prompt": ""}, "no_prompt", "prompt"),
        ({**PAIR, "prompt": " \n"}, "no_prompt", "prompt"),
        ({"responses": ["a"]}, "no_prompt", "prompt"),
        ({"messages": [assistant("a")]}, "no_prompt", "prompt"),
        ({"chosen": "yes", "rejected": "no"}, "no_prompt", "prompt"),
        ({**PAIR, "chosen": ""}, "empty_response", "response 0"),
        ({**PAIR, "rejected": " \t"}, "empty_response", "response 1"),
        ({"prompt": [user("Q")], "completion": [assistant("")]}, "empty_response", "response 0"),
        ({"prompt": [user("Q")], "completion": []}, "empty_response", "response 0"),
        ({**PAIR, "chosen": "b"}, "identical", "same"),
        ({**PAIR, "chosen": " b\n"}, "identical", "same"),
        ({"chosen": "x y", "rejected": "x y"}, "identical", "same"),
        ({"chosen": [user("x")], "rejected": [user("x")]}, "identical", "same"),
        ({**PAIR, "chosen": [assistant("a")], "rejected": [assistant("a")]}, "identical", "same"),
        ({**GROUP, "responses": []}, "length_mismatch", "0 `responses`"),
        ({"prompt": "Q", "responses": []}, "no_response", "response"),
        ({"prompt": "Q", "completions": []}, "no_response", "response"),
        ({"messages": [user("Q")]}, "no_response", "assistant"),
        ({**GROUP, "rewards": [1]}, "length_mismatch", "1 `rewards`"),
        ({**GROUP, "models": ["x"]}, "length_mismatch", "1 `models`"),
        ({**GROUP, "rewards": [1, "good"]}, "bad_reward", "rewards[1]"),
        ({**GROUP, "rewards": [float("nan"), 0]}, "bad_reward", "rewards[0]"),
        ({**GROUP, "rewards": [1, float("inf")]}, "bad_reward", "rewards[1]"),
        ({**PAIR, "score_chosen": "8/10"}, "bad_reward", "score_chosen"),
        (
            {"instruction": "Q", "completions": [{"response": "a", "overall_score": "N/A"}]},
            "bad_reward",
            "completions[0].overall_score",
        ),
        ({"prompt": "Q", "completion": "a", "label": "good"}, "bad_label", "'good'"),
        ({"prompt": "Q", "completion": "a", "label": 2}, "bad_label", "2"),
        (
            {"prompt": [user("Q"), assistant("x")], "completion": [assistant("a")]},
            "prompt_ends_with_assistant",
            "assistant",
        ),
        ({**PAIR, "prompt": [user("Q")]}, "bad_type", "all be text or all be messages"),
        ({**PAIR, "chosen": [assistant("a")]}, "bad_type", "both be text or both"),
        ({"prompt": [user("Q")], "completion": "a"}, "bad_type", "all be text or all"),
        ({**PAIR, "chosen": 3}, "bad_type", "`chosen`"),
        ({**PAIR, "prompt": {"role": "user"}}, "bad_type", "`prompt`"),
        ({**PAIR, "chosen": [{"role": "assistant"}]}, "bad_type", "`role` and `content`"),
        ({**GROUP, "responses": "a"}, "bad_type", "`responses`"),
        ({**GROUP, "rewards": 1}, "bad_type", "`rewards`"),
        ({**GROUP, "responses": [1, 2]}, "bad_type", "response 0"),
        ({"instruction": "Q", "completions": ["a"]}, "bad_type", "completions[0]"),
        ({"instruction": "Q", "completions": 3}, "bad_type", "`completions`"),
        ({"messages": "abc"}, "bad_type", "`messages`"),
        ({"instruction": [user("Q")], "output": "a"}, "bad_type", "`instruction`"),
        ({"prompt": 3, "completion": "a", "judgment": "bad"}, "bad_type", "`prompt`"),
        ({"prompt": "", "completion": "a", "judgment": "bad"}, "no_prompt", "prompt"),
        ({"messages": [assistant("a")], "judgment": "bad"}, "no_prompt", "prompt"),
        ({"prompt": "Q", "completion": "a", "judgment": "$ERROR$"}, "judgment_error", "$ERROR$"),
        ({"prompt": "Q", "completion": "a", "weight": "heavy"}, "bad_reward", "weight"),
        ({"messages": ["abc"]}, "bad_type", "`messages`"),
        ({**PAIR, "prompt": "Q \ud83d"}, "bad_text", r"surrogate pair, `\ud83d`, which is no"),
        ({"messages": [user("Q"), assistant("\udc00")]}, "bad_text", r"`\udc00`"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], reason: str, names: str):
    with pytest.raises(RowError) as caught:
        group_from_row(row)
    assert caught.value.reason == reason
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_row_of_json_values_raises_anything_but_a_row_error():
    """Random values under the known column names, nested two deep."""
    rng = random.Random(0)
    columns = (
        *("prompt", "chosen", "rejected", "responses", "rewards", "models", "completions"),
        *("completion", "messages", "instruction", "input", "output", "label", "reward", "meta"),
        *("judgment", "weight", "score_chosen"),
    )
    keys = ("role", "content", "text", "response", "reward", "overall_score", "model")

    def value(depth: int) -> Any:
        kind = rng.randrange(8 if depth < 2 else 5)
        if kind < 3:
            return rng.choice(["a", "b c", "", " ", "user", "assistant"])
        if kind == 3:
            return rng.choice([0, 1, -1, 2.5, float("nan"), True, False])
        if kind == 4:
            return None
        if kind == 5:
            return [user("x"), assistant(rng.choice("yz"))][: rng.randrange(3)]
        if kind == 6:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {key: value(depth + 1) for key in rng.sample(keys, rng.randrange(4))}

    outcomes = set()
    for _ in range(20_000):
        try:
            group_from_row({key: value(0) for key in rng.sample(columns, rng.randrange(1, 6))})
            outcomes.add("group")
        except RowError as error:
            outcomes.add(error.reason)
    assert outcomes >= {"group", "bad_type", "no_prompt", "bad_reward", "bad_label"}


# ---- Best against worst ----


def test_the_pair_is_the_best_against_the_worst_response():
    pair, ties = binarise(scored(0.5, 2.0, -1.0, 1.0), seed=0)
    assert sides(pair) == ("answer 1", "answer 2")
    assert [response.reward for response in pair.responses] == [2.0, -1.0]
    assert ties == ()


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [((1.0, 1.0, 1.0), "no_gap"), ((1.0, None), "no_reward"), ((1.0,), "no_reward")],
)
def test_a_group_without_a_strict_gap_makes_no_pair(rewards: tuple[float | None, ...], reason: str):
    with pytest.raises(RowError) as caught:
        binarise(scored(*rewards), seed=0)
    assert caught.value.reason == reason


def test_the_same_text_as_best_and_worst_makes_no_pair():
    group = Group("Q", (Response("same", 1.0), Response("other", 0.5), Response("same", 0.0)))
    with pytest.raises(RowError) as caught:
        binarise(group, seed=0)
    assert caught.value.reason == "identical"


@pytest.mark.parametrize(
    ("rewards", "ties"),
    [
        ((2.0, 2.0, 0.0), ("tie_best",)),
        ((2.0, 0.0, 0.0), ("tie_worst",)),
        ((2.0, 2.0, 0.0, 0.0), ("tie_best", "tie_worst")),
    ],
)
def test_ties_are_reported_by_side(rewards: tuple[float, ...], ties: tuple[str, ...]):
    assert binarise(scored(*rewards), seed=0)[1] == ties


def test_ties_are_broken_evenly_and_by_the_seed():
    """Among 400 prompts each of two best and of two worst is drawn about 200 times; the chance of
    fewer than 150 is below 1e-6.
    """
    groups = [scored(1.0, 1.0, 0.0, 0.0, prompt=f"prompt {i}") for i in range(400)]
    drawn = [sides(binarise(group, seed=1)[0]) for group in groups]
    for side in zip(*drawn, strict=True):
        assert all(side.count(text) > 150 for text in set(side))
        assert len(set(side)) == 2
    assert len(set(drawn)) == 4
    assert drawn == [sides(binarise(group, seed=1)[0]) for group in groups]
    assert drawn != [sides(binarise(group, seed=2)[0]) for group in groups]


def test_how_a_tie_falls_does_not_depend_on_the_rows_around_it():
    groups = [scored(1.0, 1.0, 0.0, 0.0, prompt=f"prompt {i}") for i in range(50)]
    forwards = [binarise(group, seed=3)[0] for group in groups]
    random.seed(0)
    backwards = [binarise(group, seed=3)[0] for group in reversed(groups)]
    assert forwards == backwards[::-1]


# ---- Back to rows ----


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {**PAIR, "score_chosen": 8.0, "score_rejected": 2.5, "meta": {"seed": 1}},
        {"prompt": [user("Q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {**GROUP, "rewards": [1.0, 0.0]},
        {**GROUP, "rewards": [1.0, 0.0], "models": ["x", None]},
        {"prompt": "Q", "responses": ["a"], "rewards": [0.5]},
        {"prompt": "Q", "completion": "a", "label": False},
        {"prompt": "Q", "completion": "a", "reward": 2.0, "weight": 0.5},
        {"prompt": [user("Q")], "completion": [assistant("a")]},
    ],
)
def test_a_row_in_trls_columns_survives_the_way_there_and_back(row: dict[str, Any]):
    assert row_from_group(group_from_row(row)) == row


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Q"), assistant("a")]},
        {"instruction": "Q", "input": "x", "output": "a"},
        {"instruction": "Q", "completions": [{"response": "a", "overall_score": 1.0}]},
        {"prompt": "Hi", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": "Q", "completion": "a", "label": True},
    ],
)
def test_the_row_of_a_group_reads_as_the_same_group(row: dict[str, Any]):
    group = group_from_row(row)
    assert group_from_row(row_from_group(group)) == group


def test_a_judged_view_has_no_row():
    plain = Response("a", role=CHOSEN)
    judged = replace(plain, prompt="Q and its fault", twin=0)
    with pytest.raises(RowError) as caught:
        row_from_group(Group("Q", (plain, judged)))
    assert caught.value.reason == "judged"


def test_the_words_of_messages_are_their_contents_line_by_line():
    assert text_of("abc") == "abc"
    assert text_of([user("a"), {"role": "assistant", "content": None}, assistant("b")]) == "a\n\nb"


def test_responses_with_labels_in_several_dimensions_are_a_group_and_a_row_again():
    row = {
        "prompt": "Hi",
        "responses": ["one", "two"],
        "aspects": [[1, 0.5], [0, None]],
    }
    group = group_from_row(row)
    first, second = (response.aspects for response in group.responses)
    assert first == (1.0, 0.5)
    assert second is not None
    assert second[0] == 0.0
    assert math.isnan(second[1])
    assert row_from_group(group) == row


@pytest.mark.parametrize(
    ("aspects", "reason"),
    [
        ([[1, 2]], "length_mismatch"),
        ([[1, 2], [1]], "bad_type"),
        ([1, 2], "bad_type"),
        ([[], []], "bad_type"),
        ([[1, 2], [1, "much"]], "bad_reward"),
        ([[1, 2], [1, float("inf")]], "bad_reward"),
    ],
)
def test_labels_in_several_dimensions_are_as_many_numbers_for_each_response(
    aspects: list[object], reason: str
):
    with pytest.raises(RowError) as caught:
        group_from_row({"prompt": "Hi", "responses": ["one", "two"], "aspects": aspects})
    assert caught.value.reason == reason
