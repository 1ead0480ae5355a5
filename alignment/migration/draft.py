"""A recipe in the making, from which nothing can be lost unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignment.cli import UserError


@dataclass
class Draft:
    """The keys of a configuration on their way into a recipe.

    A key leaves `left` by being put, by being not needed, or by being lost with a reason; what is
    left at the end is an error of this program.

    Attributes:
        left: Keys that are not dealt with yet.
        recipe: The recipe's keys and values.
        comments: What is said above a key of the recipe.
        unneeded: Keys of the source that change nothing here, and why.
        lost: Keys of the source without a counterpart, and what to do about it.
        remarks: What is said above the whole recipe.
    """

    left: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, list[str]] = field(default_factory=dict)
    unneeded: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def take(self, key: str, default: Any = None) -> Any:
        """Removes a key from what is left; the caller says what becomes of it."""
        return self.left.pop(key, default)

    def take_number(self, key: str, default: float) -> float:
        """Removes a number from what is left.

        Raises:
            UserError: It is none.
        """
        value = self.left.pop(key, None)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"`{key}` is {value!r}; it must be a number")
        return value

    def take_count(self, key: str, default: int) -> int:
        """Removes a whole number from what is left.

        Raises:
            UserError: It is none.
        """
        value = self.take_number(key, default)
        if value != int(value):
            raise UserError(f"`{key}` is {value}; it must be a whole number")
        return int(value)

    def put(self, key: str, value: Any, *comments: str) -> None:
        """Writes a key of the recipe."""
        self.recipe[key] = value
        self.comments.setdefault(key, []).extend(comment for comment in comments if comment)

    def pass_on(self, key: str, new: str | None = None) -> None:
        """Takes a key over as it is, under its name here."""
        renamed = new is not None and new != key
        self.put(new or key, self.take(key), f"`{key}` there." if renamed else "")

    def skip(self, key: str, why: str) -> None:
        """Lists a key that changes nothing here."""
        self.unneeded[_told(key, self.take(key))] = why

    def lose(self, key: str, why: str) -> None:
        """Lists a key that has no counterpart."""
        self.lost[_told(key, self.take(key))] = why

    def text(self, head: list[str]) -> str:
        """The recipe as YAML, with all that was noted."""
        lines = [f"# {line}".rstrip() for line in [*head, *self.remarks]]
        for key, value in self.recipe.items():
            for comment in self.comments.get(key, []):
                lines += [f"# {line}" for line in _wrapped(comment)]
            lines.append(_yaml({key: value}).rstrip())
        for title, told in (("No counterpart", self.lost), ("Not needed here", self.unneeded)):
            if told:
                lines += ["", f"# {title}:"]
                lines += [f"# {line}" for line in listed(told)]
        return "\n".join(lines) + "\n"


def listed(told: Mapping[str, str]) -> list[str]:
    """Keys with their reasons, wrapped."""
    lines = []
    for key, why in told.items():
        first, *rest = _wrapped(f"{key}: {why}", 92)
        lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


def _told(key: str, value: Any) -> str:
    text = " ".join(_yaml(value).removesuffix("...\n").split())
    return f"`{key}` ({text if len(text) <= 40 else text[:37] + '...'})"


def _yaml(value: Any) -> str:
    dumped: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return dumped


def _wrapped(text: str, width: int = 94) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
