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
        "{% include 'other.txt' %}",
        "{{ prompt.format_map }}{{ prompt.no_such_thing }}",
    ],
)
def test_a_template_reaches_nothing_behind_its_fields(tmp_path: Path, text: str):
    with pytest.raises(UserError, match=r"judge\.txt"):
        template(tmp_path, text).render(prompt="p", answer="a")


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
