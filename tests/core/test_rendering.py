"""Texts become ids that generation would meet, or the row says why it cannot be trained on."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from alignment.cli import UserError
from alignment.core.groups import CHOSEN, REJECTED, Group, Response, RowError
from alignment.core.packing import TokenGroup
from alignment.core.rendering import Renderer
from tests.tiny import BOS, BOS_ID, EOS, EOS_ID, tiny_tokenizer

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
GENERATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def plain(prompt: str = "the question", *responses: str) -> Group:
    return Group(prompt, tuple(Response(text) for text in responses or (" an answer",)))


def chat(*responses: str) -> Group:
    contents = [[assistant(text)] for text in responses or ("an answer",)]
    return Group([user("the question")], tuple(Response(content) for content in contents))


def whole(group: TokenGroup, index: int = 0) -> list[int]:
    """The context and the response of one branch."""
    return [*group.prefix, *group.contexts[index], *group.responses[index]]


def reason(renderer: Renderer, group: Group) -> str:
    with pytest.raises(RowError) as caught:
        renderer(group)
    assert "\n" not in str(caught.value)
    return caught.value.reason


# ---- Plain text ----


def test_text_is_tokenised_as_one_and_ends_with_the_end_of_sequence(
    tokenizer: PreTrainedTokenizerFast,
):
    rendered = Renderer(tokenizer)(plain("the question", " an answer"))
    assert whole(rendered.group) == [*tokenizer("the question an answer")["input_ids"], EOS_ID]
    assert tokenizer.decode(rendered.group.responses[0]) == " an answer" + EOS
    assert rendered.notices == ()


def test_text_that_brings_its_end_of_sequence_gets_no_second_one(
    tokenizer: PreTrainedTokenizerFast,
):
    once = Renderer(tokenizer)(plain("the question", " an answer"))
    assert Renderer(tokenizer)(plain("the question", " an answer" + EOS)) == once


def test_a_merge_across_the_boundary_is_noticed_and_undone(tokenizer: PreTrainedTokenizerFast):
    """`the` is one token of this tokenizer, so `t` and `he` would merge where they meet."""
    assert len(tokenizer("the")["input_ids"]) == 1
    rendered = Renderer(tokenizer)(plain("is t", "he answer"))
    apart = [tokenizer(text)["input_ids"] for text in ("is t", "he answer")]
    assert rendered.group.prefix == apart[0]
    assert rendered.group.responses == [[*apart[1], EOS_ID]]
    assert rendered.notices == ("joined_as_ids",)


def test_bos_begins_the_prompt_once_and_never_the_response():
    tokenizer = tiny_tokenizer(add_bos=True)
    for group in (plain("the question", " an answer"), plain("is t", "he answer")):
        ids = whole(Renderer(tokenizer)(group).group)
        assert ids[0] == BOS_ID
        assert ids.count(BOS_ID) == 1


def test_a_template_that_writes_bos_gets_no_second_one():
    tokenizer = tiny_tokenizer(add_bos=True)
    tokenizer.chat_template = f"{{{{ '{BOS}' }}}}{tokenizer.chat_template}"
    ids = whole(Renderer(tokenizer)(chat()).group)
    assert ids[0] == BOS_ID
    assert ids.count(BOS_ID) == 1


def test_a_tokenizer_that_ends_every_text_ends_neither_prompt_nor_response_twice(
    tokenizer: PreTrainedTokenizerFast,
):
    expected = Renderer(tokenizer)(plain()), Renderer(tokenizer)(plain("is t", "he answer"))
    ending = tiny_tokenizer()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)]
    )
    assert ending("a")["input_ids"][-1] == EOS_ID
    renderer = Renderer(ending)
    assert renderer(plain()) == expected[0]
    assert renderer(plain("is t", "he answer")) == expected[1]
    assert renderer(plain("the question", " an answer" + EOS)) == expected[0]


def test_a_prompt_may_end_with_the_end_of_sequence(tokenizer: PreTrainedTokenizerFast):
    """As text that was rendered with a chat template elsewhere does."""
    prompt = f"the question{EOS}"
    group = Renderer(tokenizer)(plain(prompt, "an answer")).group
    assert group.prefix == tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(group.responses[0]) == "an answer" + EOS


def test_a_prompt_without_any_token_is_rejected(tokenizer: PreTrainedTokenizerFast):
    assert reason(Renderer(tokenizer), plain("", "an answer")) == "empty_prompt"


def test_half_of_a_surrogate_pair_is_rejected_wherever_a_template_finds_it(
    tokenizer: PreTrainedTokenizerFast,
):
    """Also where `group_from_row` does not look: in a group that was given as such, in a role."""
    assert reason(Renderer(tokenizer), plain("the question \ud83d")) == "bad_text"
    assert reason(Renderer(tokenizer), plain("the question", " an answer \ud83d")) == "bad_text"
    group = Group([{"role": "\ud83d", "content": "a"}], (Response([assistant("b")]),))
    assert reason(Renderer(tokenizer), group) == "bad_text"


# ---- Chat messages ----


def test_messages_are_split_where_generation_would_begin(tokenizer: PreTrainedTokenizerFast):
    rendered = Renderer(tokenizer)(chat("an answer"))
    before = "<|im_start|>user\nthe question<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(rendered.group.prefix) == before
    assert tokenizer.decode(rendered.group.responses[0]) == "an answer<|im_end|>"
    assert rendered.notices == ()


def test_the_context_is_what_the_model_sees_when_it_is_used(tokenizer: PreTrainedTokenizerFast):
    prompt = [{"role": "system", "content": "a"}, user("b"), assistant("c"), user("d")]
    group = Renderer(tokenizer)(Group(prompt, (Response([assistant("e")]),))).group
    used = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert group.prefix == used


def test_what_a_template_writes_after_the_end_of_the_turn_is_cut(
    tokenizer: PreTrainedTokenizerFast,
):
    """The template of the tiny tokenizer writes a line break after each turn; this one also adds
    a second end token, as Phi's does.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>")]})
    tokenizer.chat_template = (
        TURNS
        + "'<|end|>\n' }}{% endfor %}"
        + GENERATE.replace("{% endif %}", "{% else %}{{ '<|im_end|>' }}{% endif %}")
    )
    (response,) = Renderer(tokenizer)(chat("an answer")).group.responses
    assert tokenizer.decode(response) == "an answer<|end|>"


def test_a_response_may_mention_an_end_token_and_may_end_in_blanks(
    tokenizer: PreTrainedTokenizerFast,
):
    text = "say <|im_end|> to end \n\n"
    (response,) = Renderer(tokenizer)(chat(text)).group.responses
    assert tokenizer.decode(response) == text + "<|im_end|>"


def test_a_response_of_several_messages_is_kept_whole(tokenizer: PreTrainedTokenizerFast):
    turns = [assistant("a"), user("b"), assistant("c")]
    (response,) = Renderer(tokenizer)(Group([user("q")], (Response(turns),))).group.responses
    assert tokenizer.decode(response) == (
        "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>"
    )


def test_a_template_that_drops_the_end_of_turn_is_rejected(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = TURNS + "'\n' }}{% endfor %}" + GENERATE
    assert reason(Renderer(tokenizer), chat()) == "no_end_of_turn"


def test_dropping_only_the_last_end_of_turn_is_noticed_too(tokenizer: PreTrainedTokenizerFast):
    ends = "('' if loop.last and m['role'] == 'assistant' else '<|im_end|>\n') }}{% endfor %}"
    tokenizer.chat_template = TURNS + ends + GENERATE
    turns = [assistant("a"), user("b"), assistant("c")]
    assert reason(Renderer(tokenizer), Group([user("q")], (Response(turns),))) == "no_end_of_turn"


def test_an_unknown_token_does_not_end_a_turn(tokenizer: PreTrainedTokenizerFast):
    """Looking up an absent end token gives the id of the unknown token."""
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    tokenizer.chat_template = TURNS + "'\n' }}{% endfor %}" + GENERATE
    assert reason(Renderer(tokenizer), chat("an answer <unk>")) == "no_end_of_turn"


def test_a_template_that_renders_the_prompt_differently_is_rejected(
    tokenizer: PreTrainedTokenizerFast,
):
    """As templates do that open a thought for generation and leave it out of the history."""
    tokenizer.chat_template = (
        TURNS + "'<|im_end|>\n' }}{% endfor %}" + GENERATE.replace("assistant\n", "think\n")
    )
    assert reason(Renderer(tokenizer), chat()) == "prompt_not_prefix"


def test_a_row_that_the_template_refuses_is_rejected_with_its_words(
    tokenizer: PreTrainedTokenizerFast,
):
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'user' %}{{ raise_exception('no user first') }}{% endif %}"
    )
    with pytest.raises(RowError, match="no user first") as caught:
        Renderer(tokenizer)(chat())
    assert caught.value.reason == "template_error"


def test_messages_without_a_chat_template_stop_the_run(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat_template_path"):
        Renderer(tokenizer)(chat())
    assert Renderer(tokenizer)(plain()).notices == ()


def test_a_tokenizer_without_end_of_sequence_is_refused(tokenizer: PreTrainedTokenizerFast):
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Renderer(tokenizer)


# ---- Length ----


def lengths(group: TokenGroup) -> tuple[int, int]:
    return len(group.prefix) + len(group.contexts[0]), len(group.responses[0])


@pytest.mark.parametrize("mode", ["drop", "keep_start", "keep_end"])
def test_a_row_of_exactly_the_limit_is_left_alone(tokenizer: PreTrainedTokenizerFast, mode: Any):
    free = Renderer(tokenizer, max_length=None)(chat())
    limited = Renderer(tokenizer, max_length=sum(lengths(free.group)), truncation_mode=mode)
    assert limited(chat()) == free


def test_longer_rows_are_dropped_by_default(tokenizer: PreTrainedTokenizerFast):
    prompt, response = lengths(Renderer(tokenizer)(chat()).group)
    assert reason(Renderer(tokenizer, max_length=prompt + response - 1), chat()) == "too_long"
    assert reason(Renderer(tokenizer, max_length=prompt), chat()) == "prompt_too_long"


def test_one_long_response_drops_the_whole_group(tokenizer: PreTrainedTokenizerFast):
    limit = sum(lengths(Renderer(tokenizer)(chat("an answer")).group))
    renderer = Renderer(tokenizer, max_length=limit)
    assert reason(renderer, chat("an answer", "an answer and more of it")) == "too_long"


def test_keep_start_cuts_the_response_and_says_so(tokenizer: PreTrainedTokenizerFast):
    free = Renderer(tokenizer, max_length=None)(chat()).group
    prompt, response = lengths(free)
    cut = Renderer(tokenizer, max_length=prompt + response - 2, truncation_mode="keep_start")
    rendered = cut(chat())
    assert whole(rendered.group) == whole(free)[:-2]
    assert rendered.notices == ("truncated",)
    none_left = Renderer(tokenizer, max_length=prompt, truncation_mode="keep_start")
    assert reason(none_left, chat()) == "prompt_too_long"


def test_keep_end_cuts_the_beginning_of_the_prompt_and_says_so(
    tokenizer: PreTrainedTokenizerFast,
):
    free = Renderer(tokenizer, max_length=None)(chat()).group
    prompt, response = lengths(free)
    for kept in (prompt - 1, 1):
        cut = Renderer(tokenizer, max_length=kept + response, truncation_mode="keep_end")
        rendered = cut(chat())
        assert whole(rendered.group) == whole(free)[prompt - kept :]
        assert rendered.group.responses == free.responses
        assert rendered.notices == ("truncated",)
    none_left = Renderer(tokenizer, max_length=response, truncation_mode="keep_end")
    assert reason(none_left, chat()) == "prompt_too_long"


# ---- Labels ----


def test_labels_and_origin_come_along(tokenizer: PreTrainedTokenizerFast):
    group = Group(
        "the question",
        (
            Response(" a", reward=1.5, role=CHOSEN, weight=0.5),
            Response(" b", reward=0.5, role=REJECTED, weight=2.0),
        ),
    )
    tokens = Renderer(tokenizer)(group, "pairs.jsonl:7").group
    assert (tokens.role, tokens.reward, tokens.weight) == ([1, -1], [1.5, 0.5], [0.5, 2.0])
    assert (tokens.twin, tokens.origin) == (None, "pairs.jsonl:7")


def test_a_label_that_some_responses_lack_is_left_out(tokenizer: PreTrainedTokenizerFast):
    group = Group("the question", (Response(" a", reward=1.0), Response(" b")))
    assert Renderer(tokenizer)(group).group.reward is None


def judged(prompt: str, judgment: str, response: str) -> Group:
    view = Response(response, role=REJECTED)
    return Group(prompt, (view, replace(view, prompt=f"{prompt}{judgment}", twin=0)))


def test_a_judged_view_has_a_context_of_its_own_and_the_same_response(
    tokenizer: PreTrainedTokenizerFast,
):
    tokens = Renderer(tokenizer)(judged("the question", " and its fault\n", "the answer")).group
    assert tokens.prefix == tokenizer("the question")["input_ids"]
    assert [tokenizer.decode(context) for context in tokens.contexts] == ["", " and its fault\n"]
    assert tokens.responses[0] == tokens.responses[1]
    assert tokens.twin == [-1, 0]


def test_views_that_would_be_cut_differently_are_rejected(tokenizer: PreTrainedTokenizerFast):
    group = judged("the question", " and its fault", " the answer the user asked")
    free = Renderer(tokenizer)(group).group
    limit = len(whole(free, 1)) - 1
    assert len(whole(free, 0)) <= limit
    cut = Renderer(tokenizer, max_length=limit, truncation_mode="keep_start")
    assert reason(cut, group) == "views_differ"
