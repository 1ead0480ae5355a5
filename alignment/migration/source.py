"""What a foreign configuration says: the keys of a YAML file, or of a training command."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from alignment.cli import UserError, load_yaml
from alignment.migration.shell import commands, refuse_variables

_TRAINERS = ("distillm", "simpo", "orpo", "grpo", "rloo", "gkd", "dpo", "cpo", "kto", "sft")
"""Names that scripts carry (`run_simpo.py`, `trl dpo`), the longest first."""

_SCIENTIFIC = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+")
_RANGE = re.compile(r"\d+(?::\d+)+")
"""Such as `1:4`, which YAML takes for a number to the base of 60."""

_ACCELERATE = ("accelerate", "torchrun", "deepspeed")
_PER_NODE = {"nproc_per_node": "nnodes", "num_gpus": "num_nodes"}
"""Options that count the processes of a node -> those that count the nodes."""


@dataclass(frozen=True)
class Source:
    """A configuration of another project.

    Attributes:
        name: The file it was read from.
        keys: Its keys and values.
        trainer: What the command says is trained by; None for a file of keys.
        processes: How many processes the command starts on all nodes, where it says so.
    """

    name: str
    keys: dict[str, Any] = field(default_factory=dict)
    trainer: str | None = None
    processes: int | None = None


def read_source(path: Path) -> Source:
    """Reads a YAML configuration, or a shell script with one training command.

    Raises:
        UserError: The file is missing, or is neither.
    """
    if path.suffix in (".yaml", ".yml", ".json"):
        return Source(str(path), _read_yaml(path))
    if path.suffix == ".py":
        raise UserError(f"{path} is a program; give the command that starts it, or its YAML")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read {path}: {told}") from None
    found = [words for words in commands(text, path) if _trainer(words) is not None]
    if len(found) != 1:
        raise UserError(
            f"{path} holds {len(found)} training commands; give one in a file of its own, or "
            "the YAML that it names"
        )
    return _from_command(found[0], path)


def _trainer(words: Sequence[str]) -> str | None:
    """The trainer that a command names, by its script or by `trl VERB`."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name = following if Path(word).name == "trl" else Path(word).stem
        is_script = word.endswith(".py") or Path(word).name == "trl"
        found = next((t for t in _TRAINERS if is_script and t in re.split(r"[_\-/.]", name)), None)
        if found is not None:
            return found
    return None


def _from_command(words: list[str], path: Path) -> Source:
    refuse_variables(words, path)
    source = Source(str(path), trainer=_trainer(words))
    start = next(i for i, w in enumerate(words) if w.endswith(".py") or Path(w).name == "trl")
    options = _options(words[start + 1 :])
    given = options.pop("num_processes", _processes(words[:start]))
    configs = [word for word in words[start + 1 :] if word.endswith((".yaml", ".yml"))]
    config = options.pop("config", configs[0] if configs else None)
    keys = {**(_named(Path(str(config)), path) if config is not None else {}), **options}
    return replace(source, keys=keys, processes=given if isinstance(given, int) else None)


def _processes(words: Sequence[str]) -> int | None:
    """How many processes a launcher starts on all nodes; None where it does not say."""
    if not any(Path(word).name in _ACCELERATE for word in words):
        return None
    options = _options(words)
    names_nodes = any(word.startswith(("--hostfile", "-H")) for word in words)
    counts = [options.get("num_processes")]
    for each, nodes in _PER_NODE.items():
        if each in options:
            counts = [options[each], options.get(nodes, None if names_nodes else 1)]
    known = [count for count in counts if isinstance(count, int)]
    return math.prod(known) if len(known) == len(counts) else None


def _named(config: Path, script: Path) -> dict[str, Any]:
    """The keys of a file that a command names: from here, or from the script's folders up."""
    folders = [Path(), *script.resolve().parents]
    found = next((f / config for f in folders if (f / config).is_file()), None)
    if found is None:
        raise UserError(f"{script} names {config}, which is not there: run this in its folder")
    return _read_yaml(found)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a file; numbers such as 1e-6 are numbers, which YAML takes for text."""
    return {
        key: float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
        for key, value in load_yaml(path).items()
    }


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Keys and values of `--key value`, `--key=value`, `--key a b` and `--flag`."""
    found: dict[str, list[Any]] = {}
    values: list[Any] | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            values = found[key.replace("-", "_")] = [_value(value)] if equals else []
        elif values is not None:
            values.append(_value(word))
    return {
        key: True if not given else given[0] if len(given) == 1 else given
        for key, given in found.items()
    }


def _value(word: str) -> Any:
    """A word as YAML reads it, and numbers such as 1e-6."""
    try:
        read = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    if _RANGE.fullmatch(word):
        return word
    return float(word) if _SCIENTIFIC.fullmatch(word) else read
