"""As much of the shell as scripts that start a training use: commands, variables, redirections."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from alignment.cli import UserError

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+)|\()")
"""`${name}`, also with a default or the like, `$name`, and where the output of a command begins."""

_SEPARATORS = frozenset({"&&", "||", "|", "&", ";"})
_REDIRECTION = re.compile(r"[0-9&]?>")
_PASSED = frozenset({"export", "exec", "$@", "$*"})
"""Words that change nothing, and those that the script itself is called with."""


def commands(text: str, path: Path) -> Iterator[list[str]]:
    """The words of each command of a script, with the variables that it has set by then.

    Args:
        text: The script.
        path: Its file, for messages.

    Raises:
        UserError: It is no shell script.
    """
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{path} is no shell script: {error}") from None
        for simple in _simple(words):
            command = [part for word in simple for part in _filled(word, variables)]
            while command and (found := _ASSIGNMENT.fullmatch(command[0])):
                name, adds, value = found.groups()
                variables[name] = variables.get(name, "") + value if adds else value
                command = command[1:]
            if command:
                yield command


def refuse_variables(words: Sequence[str], path: Path) -> None:
    """Refuses a command with values that only a shell knows.

    Raises:
        UserError: It has one; it is named.
    """
    unknown = next((found[0] for word in words if (found := _VARIABLE.search(word))), None)
    if unknown is not None:
        raise UserError(
            f"{path}: the value of `{unknown}` is not in the script; write it into the command"
        )


def _simple(words: Sequence[str]) -> Iterator[list[str]]:
    """The commands of a line, each up to where its output goes."""
    command: list[str] = []
    for word in [*words, ";"]:
        if word in _SEPARATORS:
            yield [*takewhile(lambda each: not _REDIRECTION.match(each), command)]
            command = []
        elif word not in _PASSED:
            command.append(word)


def _filled(word: str, variables: Mapping[str, str]) -> list[str]:
    """A word with the values of plain variables; others are left as they stand.

    A word that is one variable stands for all words of its value, as it does without quotes.
    """

    def value(found: re.Match[str]) -> str:
        is_plain = found[0] in (f"${found[2]}", f"${{{found[1]}}}")
        return variables.get(found[1] or found[2], found[0]) if is_plain else found[0]

    filled = _VARIABLE.sub(value, word)
    return filled.split() if _VARIABLE.fullmatch(word) else [filled]
