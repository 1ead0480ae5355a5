"""Prompt files: templates that a user can replace, with nothing in reach but their fields."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, StrictUndefined, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignment.cli import UserError, unknown
from alignment.llm.protocol import Message, Prompt

_JINJA = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, loader=DictLoader({})
)
_ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If),
    *(nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Filter, nodes.Keyword),
)
"""What rendering takes no more time and memory for than the fields and the file are long."""
_FILTERS = frozenset({"trim", "upper", "lower", "length", "tojson"})


class Template:
    """A prompt file: fields, `{% if %}`, comparisons, and the filters of `_FILTERS`.

    There is no attribute, call, loop, arithmetic, assignment or other file in it: a file from
    elsewhere can neither reach into the process nor hold it up.

    Args:
        path: The file, in Jinja's syntax.
        fields: The names it may use; `fence` comes on top, a word that stands in no other field,
            for marking where foreign text begins and ends.

    Attributes:
        digest: Checksum of the text, to be recorded beside what came of it.

    Raises:
        UserError: The file is missing, or uses anything but its fields.
    """

    def __init__(self, path: str | Path, fields: Collection[str]) -> None:
        self.path = Path(path)
        self.fields = frozenset(fields)
        try:
            text = self.path.read_text(encoding="utf-8")
            parsed = _JINJA.parse(text)
            _refuse_more(parsed, path)  # before compiling, which computes what is constant
            used = meta.find_undeclared_variables(parsed)
            self._template = _JINJA.from_string(parsed)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompt file {path}: {error}") from None
        except TemplateError as error:
            raise UserError(f"{path} is no valid template: {error}") from None
        for name in sorted(used - self.fields - {"fence"}):
            raise unknown(f"field in {path}", name, [*self.fields, "fence"])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def render(self, **values: str | Mapping[str, str]) -> str:
        """The prompt with its fields filled in, without white space at its ends.

        Args:
            **values: The fields. A mapping is shown as one fenced section for each entry, which is
                what a number of texts that the file cannot know needs.

        Raises:
            UserError: The template does with a field what it may not.
        """
        foreign = [v for value in values.values() for v in _texts(value)]
        mark = fence(*foreign)
        shown = {name: _shown(value, mark) for name, value in values.items()}
        try:
            return self._template.render(**shown, fence=mark).strip()
        except Exception as error:  # whatever a user's template does wrong is told with its name
            raise UserError(f"{self.path} cannot be rendered: {error}") from None

    def user_message(self, **values: str | Mapping[str, str]) -> list[Message]:
        """The rendered prompt as a conversation of one user message."""
        return [{"role": "user", "content": self.render(**values)}]


def _refuse_more(parsed: nodes.Template, path: str | Path) -> None:
    for node in parsed.find_all(nodes.Node):
        kind = type(node).__name__.lower()
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            known = ", ".join(sorted(_FILTERS))
            raise UserError(f"{path}: the filter `{node.name}` is not for prompts; known: {known}")
        if not isinstance(node, _ALLOWED):
            raise UserError(
                f"{path}, line {node.lineno}: no `{kind}` in a prompt file, which holds fields, "
                "`{% if %}` and filters"
            )


def fence(*texts: str) -> str:
    """A short word that is found in none of the texts, and the same for the same texts.

    Nor do they hold it in other characters that look alike, or broken up by invisible ones.
    """
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    seen = [_folded(text) for text in texts]
    size = next(size for size in range(8, len(digest)) if not any(digest[:size] in t for t in seen))
    return digest[:size]


def _folded(text: str) -> str:
    """A text as a lenient reader sees it: one form of each character, none invisible."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")


def _texts(value: str | Mapping[str, str]) -> Collection[str]:
    return (value,) if isinstance(value, str) else value.values()


def _shown(value: str | Mapping[str, str], mark: str) -> str:
    if isinstance(value, str):
        return value
    parts = (f"[{name} {mark}]\n{text}\n[/{name} {mark}]" for name, text in value.items())
    return "\n\n".join(parts)


def as_messages(prompt: Prompt) -> Sequence[Message]:
    """A prompt as a conversation: plain text becomes the user's message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def as_text(prompt: Prompt) -> str:
    """A prompt as text to show to a judge or a reviser.

    One message is its content; of several, each begins with its role. A message that says nothing
    is the calls of tools that it makes.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return _said(prompt[0])
    return "\n\n".join(f"{message['role']}: {_said(message)}" for message in prompt)


def _said(message: Mapping[str, Any]) -> str:
    said = message.get("content")
    if said is None and message.get("tool_calls"):
        return json.dumps(message["tool_calls"], ensure_ascii=False)
    return str(said or "")


def shorten(value: object, length: int = 100) -> str:
    """The beginning of a text in one line, for messages."""
    line = " ".join(str(value).split())
    return line if len(line) <= length else line[:length] + " ..."


def sections(text: str) -> dict[str, str]:
    """The fenced sections of a rendered prompt by name, for programs that stand in for models.

    A section begins with a line `[name fence]` and ends with a line `[/name fence]`.
    """
    found = re.finditer(r"^\[(\w+) ([0-9a-f]{8,})\]\n(.*?)\n\[/\1 \2\]$", text, re.M | re.S)
    return {match[1]: match[3] for match in found}
