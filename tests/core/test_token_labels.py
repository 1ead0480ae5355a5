"""Labels of characters reach the tokens that stand for them, and no other."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alignment.core.groups import (
    Group,
    Response,
    RowError,
    Segment,
    as_chat,
    group_from_row,
    row_from_group,
)
from alignment.core.rendering import Renderer
from alignment.core.token_labels import segment_scores, span_marks

ROW = {"prompt": "the question", "completion": " an answer that is wrong, and more"}
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' ' + m['content'].strip() + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)


def labelled(tokenizer: Any, group: Group) -> list[tuple[str, Any]]:
    """Each token's text with its label."""
    tokens = Renderer(tokenizer)(group).group
    (ids,) = tokens.responses
    (labels,) = tokens.mark or tokens.score or ()
    assert len(labels) == len(ids)
    return [(tokenizer.decode([token]), label) for token, label in zip(ids, labels, strict=True)]


def joined(pairs: list[tuple[str, Any]], label: Any) -> str:
    return "".join(text for text, own in pairs if own == label)


def test_tokens_of_a_flagged_span_are_marked(tokenizer: PreTrainedTokenizerFast):
    start = ROW["completion"].index("wrong")
    group = group_from_row({**ROW, "spans": [[start, start + 5]]})
    assert joined(labelled(tokenizer, group), -1).strip() == "wrong"


def test_nothing_flagged_marks_nothing(tokenizer: PreTrainedTokenizerFast):
    pairs = labelled(tokenizer, group_from_row({**ROW, "spans": []}))
    assert {label for _, label in pairs} == {0}


def test_a_chat_template_shifts_spans_along(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = TEMPLATE
    text = "  an answer that is wrong"
    row = {
        "messages": [
            {"role": "user", "content": "the question"},
            {"role": "assistant", "content": text},
        ],
        "spans": [{"start": text.index("wrong"), "end": len(text)}],
    }
    pairs = labelled(tokenizer, group_from_row(row))
    assert joined(pairs, -1).strip() == "wrong"
    assert pairs[-1] == (tokenizer.eos_token, 0)


def test_labels_move_along_where_a_text_becomes_a_turn():
    """White space at the ends is taken off: two characters before `an`, one after `bad`."""
    flagged = group_from_row(
        {"prompt": "q", "completion": "  an answer ", "spans": [[1, 4], [0, 2]]}
    )
    assert as_chat(flagged).responses[0].spans == ((0, 2),)
    parts = [
        {"text": "  good", "score": 0},
        {"text": " bad", "score": 1},
        {"text": " ", "score": 2},
    ]
    scored = group_from_row({"prompt": "q", "segments": parts})
    assert as_chat(scored).responses[0].segments == (Segment(0, 4, 0), Segment(4, 8, 1))


def test_every_token_has_the_score_of_its_segment(tokenizer: PreTrainedTokenizerFast):
    parts = [{"text": " an answer.", "score": 0.25}, {"text": " And more", "score": 0.75}]
    pairs = labelled(tokenizer, group_from_row({"prompt": "the question", "segments": parts}))
    assert joined(pairs, 0.25) == " an answer."
    assert joined(pairs, 0.75) == " And more" + tokenizer.eos_token


def test_a_cut_response_keeps_the_labels_of_what_is_left(tokenizer: PreTrainedTokenizerFast):
    group = group_from_row({**ROW, "spans": [[0, 10]]})
    whole = Renderer(tokenizer)(group).group
    limit = len(whole.prefix) + 6
    cut = Renderer(tokenizer, max_length=limit, truncation_mode="keep_start")(group).group
    assert whole.mark is not None
    assert cut.mark == [whole.mark[0][:6]]


def test_a_token_across_two_segments_belongs_to_the_one_it_ends_in():
    """Tokens 0-2, 2-5, 5-6 and an appended one at 6; the segments end at 3 and 6."""
    segments = [Segment(0, 3, 1.0), Segment(3, 6, 2.0)]
    ranges = [(-4, -1), (0, 2), (2, 5), (5, 6), (6, 6)]
    assert segment_scores(ranges, segments) == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert span_marks(ranges, [(2, 3)]) == [0, 0, -1, 0, 0]


def test_a_template_that_changes_the_text_is_a_reject(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = TEMPLATE.replace(".strip()", ".upper()")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    with pytest.raises(RowError, match="the chat template changes the response's text"):
        Renderer(tokenizer)(group_from_row({"messages": messages, "spans": [[0, 1]]}))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"spans": [[3, 99]]}, r"`spans\[0\]` is \[3, 99\]: .* the 34 characters"),
        ({"spans": [[3, 3]]}, "must be a start and an end"),
        ({"spans": [[0.5, 3]]}, "must be a start and an end"),
        ({"spans": ["wrong"]}, "must be a start and an end"),
        ({"spans": "wrong"}, "`spans` must be a list"),
        ({"segments": [{"text": " an", "score": 0}]}, "cover 3 of the 34 characters"),
        ({"segments": [{"text": "an", "score": 0}]}, r"cover 0 of .*' an answer that is w' comes"),
        (
            {"segments": [{"start": 0, "end": 5, "score": 0}, {"start": 6, "end": 34, "score": 0}]},
            r"cover 5 of the 34 .* `segments\[1\]` does not go on there",
        ),
        ({"segments": []}, "cover 0 of the 34"),
        ({"segments": [{"text": " an"}]}, r"`segments\[0\].score` is not a number: None"),
        ({"segments": [7]}, r"segments\[0\] must be an object, got int"),
    ],
)
def test_labels_that_do_not_fit_the_text_are_named(columns: dict[str, Any], told: str):
    with pytest.raises(RowError, match=told):
        group_from_row({**ROW, **columns})


def test_segments_without_texts_need_a_completion():
    with pytest.raises(RowError, match="`segments` without `completion` need a `text` each"):
        group_from_row({"prompt": "a", "segments": [{"start": 0, "end": 1, "score": 0}]})


def test_rows_with_labels_of_characters_and_sides_survive_writing():
    rows: list[dict[str, Any]] = [
        {**ROW, "spans": [[0, 3]]},
        {**ROW, "spans": []},
        {"prompt": "a", "segments": [{"text": " b", "score": 0.5}]},
        {"prompt": "a", "responses": [" b", " c", " d"], "roles": [1, -1, 1]},
    ]
    for row in rows:
        group = group_from_row(row)
        assert group_from_row(row_from_group(group)) == group


@pytest.mark.parametrize("role", [2, "chosen", True, None])
def test_a_role_of_another_kind_is_named(role: Any):
    with pytest.raises(RowError, match=r"`roles\[1\]` must be 1, 0 or -1"):
        group_from_row({"prompt": "a", "responses": [" b", " c"], "roles": [1, role]})


def test_spans_of_several_messages_are_refused():
    content = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"prompt": [{"role": "user", "content": "q"}], "completion": content, "spans": []}
    with pytest.raises(RowError, match="`spans` need a response of one message"):
        group_from_row(row)
    assert Response(content).spans is None
