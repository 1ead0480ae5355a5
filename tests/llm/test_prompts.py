"""Templates see their fields and nothing else."""

from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.llm.prompts import Template, as_text, fence


def template(tmp_path: Path, text: str) -> Template:
    path = tmp_path / "judge.txt"
    path.write_text(text)
    return Template(path, {"prompt", "answer"})


def test_fields_are_filled_in(tmp_path: Path):
    made = template(tmp_path, "Q: {{ prompt }}\nA: {{ answer }}\n")
    assert made.render(prompt="<b> & {{ x }}", answer="2") == "Q: <b> & {{ x }}\nA: 2"


def test_an_unknown_field_is_named_with_the_nearest_one(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"unknown field in .*judge\.txt `anwser`; did you mean `ans"
    ):
        template(tmp_path, "{{ prompt }} {{ anwser }}")


@pytest.mark.parametrize(
    "text",
    [
        "{{ prompt.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ prompt['__class__'] }}",
        "{{ prompt|attr('__class__') }}",
        "{{ 'x'|format_map }}{{ prompt.no_such_thing }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ self._TemplateReference__context }}",
        "{% include 'other.txt' %}",
        "{% include '/etc/passwd' %}",
        "{% import 'other.txt' as other %}",
        "{% extends 'other.txt' %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for a in prompt %}{% for b in prompt %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set x = prompt %}{{ x }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ prompt ~ prompt }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ prompt|center(999999999) }}",
        "{{ prompt|replace('', prompt)|replace('', prompt) }}",
        "{{ lipsum(9999999) }}",
        "{{ prompt() }}",
        "{{ prompt.format(prompt) }}",
    ],
)
def test_a_template_reaches_nothing_and_takes_no_time_beyond_its_fields(tmp_path: Path, text: str):
    """It is refused as the file is read, before anything is rendered or paid for."""
    with pytest.raises(UserError, match=r"judge\.txt") as caught:
        template(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_a_prompt_needs_is_there(tmp_path: Path):
    text = (
        "{# a remark #}{% if answer|length > 3 and 'x' not in answer %}long{% elif not answer %}"
        "none{% else %}{{ answer|trim|upper if prompt == 'p' else prompt|tojson }}{% endif %}"
        "{% raw %}{{ }}{% endraw %}"
    )
    made = template(tmp_path, text)
    answers = ("four", "", " ab")
    assert [made.render(prompt="p", answer=answer) for answer in answers] == [
        *("long{{ }}", "none{{ }}", "AB{{ }}")
    ]


def test_a_field_is_never_read_as_a_template(tmp_path: Path):
    made = template(tmp_path, "{{ prompt }}{{ answer }}")
    assert made.render(prompt="{{ answer", answer="}} {% x %}") == "{{ answer}} {% x %}"


def test_broken_syntax_is_told_with_the_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"judge\.txt is no valid template"):
        template(tmp_path, "{% if prompt %}")


def test_the_digest_follows_the_text(tmp_path: Path):
    first, second = template(tmp_path, "{{ prompt }}"), template(tmp_path, "{{ prompt }}!")
    assert first.digest != second.digest
    assert first.digest == template(tmp_path, "{{ prompt }}").digest


def test_a_fence_stands_in_no_text_and_is_the_same_for_the_same_texts():
    texts = ["one", "two"]
    word = fence(*texts)
    assert word == fence(*texts)
    assert len(word) == 8
    assert fence("a", "b") != fence("ab", "")


def test_messages_as_text_name_their_roles_where_there_are_several():
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert as_text([user]) == as_text("q") == "q"
    assert as_text([user, assistant, user]) == "user: q\n\nassistant: a\n\nuser: q"
    calling = {"role": "assistant", "content": None, "tool_calls": [{"name": "é"}]}
    assert as_text([user, calling]) == 'user: q\n\nassistant: [{"name": "é"}]'
