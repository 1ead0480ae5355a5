"""Options of a command: a dataclass filled from YAML and the command line; errors in one line."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import difflib
import json
import logging
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")

_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    dict: "a mapping such as '{\"key\": 1}'",
    type(None): "null",
}


class UserError(Exception):
    """Something the user can mend; the message is one line: what is wrong, where, the remedy.

    Attributes:
        status: With what the process ends.
    """

    status = 2


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known name most like `key`, None where none is like it."""
    names = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=0.5)
    return names[close[0]] if close else None


def unknown(what: str, key: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist; it shows the nearest one that does, else all."""
    known = sorted(known)
    near = nearest(key, known)
    hint = f"did you mean `{near}`?" if near else f"known: {', '.join(known) or 'none'}"
    return UserError(f"unknown {what} `{key}`; {hint}")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: The file is missing, not YAML, or not a mapping with names as keys.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold `key: value` lines, got a {type(loaded).__name__}")
    for key in loaded:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key `{key}` is no text; put quotes around it")
    return loaded


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a recipe: those of the recipe that its `extends` names, and its own over them.

    Args:
        path: A YAML file; the path after `extends` is relative to it.

    Raises:
        UserError: A file is missing or no mapping, or a recipe extends itself.
    """
    merged: dict[str, Any] = {}
    seen: list[Path] = []
    following: Path | None = Path(path)
    while following is not None:
        seen.append(following.resolve())
        own = load_yaml(following)
        extended = own.pop("extends", None)
        merged = {**own, **merged}
        if extended is not None and not isinstance(extended, str):
            raise UserError(f"{following}: `extends` takes the path of a recipe, got `{extended}`")
        following = None if extended is None else following.parent / extended
        if following is not None and following.resolve() in seen:
            raise UserError(f"{path} extends itself, by way of {following}; take one `extends` out")
    return merged


def parse(
    options: type[T],
    argv: Sequence[str],
    program: str,
    about: str | None = None,
    *,
    bare: str | None = None,
) -> T:
    """Fills a dataclass: its defaults, then the file after `--config`, then the command line.

    Args:
        options: A dataclass; a field without default is required, and its metadata may hold `help`.
        argv: Words after the command: `--key value`, `--key=value`, `--flag`, `--key a b` for a
            list, JSON for a dict. `-` and `_` in keys are the same; the last of equal keys wins.
        program: The command as it is typed, for messages.
        about: What `--help` says first; the dataclass's docstring by default.
        bare: The field that words before the first option go to; None where there may be none.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type.
        SystemExit: After `--help`.
    """
    fields = {f.name: f for f in dataclasses.fields(options) if f.init}  # type: ignore[arg-type]
    kinds = get_type_hints(options)
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(_help(fields, kinds, program, about or options.__doc__ or "", bare))
        raise SystemExit(0)
    flags = _flags(argv, program, bare)
    values: dict[str, Any] = {}
    for path in flags.pop("config", []):
        for name, value in load_recipe(path).items():
            if name not in fields:
                raise unknown(f"key in {path}", name, fields)
            values[name] = _convert(value, kinds[name], f"{path}: `{name}`")
    for name, words in flags.items():
        if name not in fields:
            raise unknown(f"option of `{program}`", _flag(name), map(_flag, fields))
        values[name] = _from_words(words, kinds[name], f"`{_flag(name)}`")
    for name, field in fields.items():
        if name not in values and _required(field):
            told = field.metadata.get("help", "required")
            raise UserError(f"`{program}` needs `{_flag(name)}` ({told}); see `{program} --help`")
    try:
        return options(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


def split(options: type[Any], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that are options of a dataclass, and all others."""
    known = set(options.__dataclass_fields__)
    own: list[str] = []
    other: list[str] = []
    current = other
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            current = own if name in known else other
        current.append(word)
    return own, other


def check_counts(options: Any, *names: str) -> None:
    """Refuses counts below 1; those that are None are not set.

    Args:
        options: What has them as attributes.
        names: Of the attributes.

    Raises:
        ValueError: One is below 1.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; it must be at least 1")


def words_of(options: Any, omitted: Collection[str] = ()) -> list[str]:
    """The command line that `parse` reads as these options: all that differ from their defaults.

    Args:
        options: A dataclass.
        omitted: Fields that are left out.
    """
    words = []
    for name, value in changed(options, omitted).items():
        words += [_flag(name), *_words(value)]
    return words


def changed(options: Any, omitted: Collection[str] = ()) -> dict[str, Any]:
    """The options that differ from their defaults, in order.

    Args:
        options: A dataclass.
        omitted: Fields that are left out.
    """
    found = {}
    for field in dataclasses.fields(options):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        value = getattr(options, field.name)
        if field.name not in omitted and value != default:
            found[field.name] = value
    return found


def module_of(options: Any) -> str:
    """The module that defines a dataclass, also where that runs as `python -m MODULE`."""
    module = sys.modules[type(options).__module__]
    spec = getattr(module, "__spec__", None)
    return str(module.__name__ if spec is None else spec.name)


def print_error(message: str, status: int) -> None:
    """One line on standard error, whatever the process ends with."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")


def run(
    main: Callable[[list[str]], Any],
    argv: Sequence[str] | None = None,
    tell: Callable[[str, int], None] = print_error,
) -> None:
    """Calls a command's `main` and ends the process: 0, or one line about what to mend and 2.

    An interrupted command ends with 130.

    Args:
        main: Takes the words after the command.
        argv: Those words; the process's own by default.
        tell: What is done with the line, and with what the process ends.
    """
    quieten()
    try:
        main(list(sys.argv[1:] if argv is None else argv))
        leave(0)
    except UserError as error:
        message, status = str(error), error.status
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        message, status = f"{error.strerror or error}{where}", 2
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    tell(message, status)
    leave(status)


def leave(status: int) -> NoReturn:
    """Ends a process; one of several as `multiprocessing` ends its own: the interpreter stays up.

    The threads of gloo outlive their group, as DDP holds on to it. One that lets go of the tensor
    of the last collective while the interpreter is taken down aborts the process ("terminate called
    without an active exception"), after all has been saved.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_no_missing_gpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def quieten() -> None:
    """Silences what libraries tell of every request and lock, and an alarming word on import."""
    for noisy in ("filelock", "httpcore", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # An optional kernel that is missing reads like a broken installation.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # So does DeepSpeed's word, on standard output, that it sees no GPU; `alignment doctor` tells.
    logging.getLogger("DeepSpeed").addFilter(_is_no_missing_gpu)


def say(text: str) -> None:
    """A line of a command's final report, on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(document: Mapping[str, Any], to: str | None, lines: Iterable[str]) -> None:
    """A command's report: as JSON where that is wanted, and in words.

    Args:
        document: The report.
        to: File for the JSON; `-` is standard output, which then holds nothing else.
        lines: The report in words.
    """
    text = json.dumps(document, indent=2, allow_nan=False)
    if to == "-":
        say(text)
        return
    if to is not None:
        Path(to).write_text(text + "\n", encoding="utf-8")
    for line in lines:
        say(line)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict | bool | None) else str(value)]


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _flags(argv: Sequence[str], program: str, bare: str | None) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            words = flags[name.replace("-", "_")] = [value] if equals else []
        elif words is None and bare is not None:
            words = flags[bare] = [word]
        elif words is None:
            raise UserError(f"`{program}` takes no bare word `{word}`; options are `--key value`")
        else:
            words.append(word)
    return flags


def _from_words(words: list[str], kind: Any, where: str) -> Any:
    if not words and bool in (kind, *get_args(kind)):
        return True
    if len(words) != 1 and not any(_is_list(arm) for arm in (kind, *get_args(kind))):
        raise UserError(f"{where} takes one value, got {len(words)}")
    return _convert(words[0] if len(words) == 1 else words, kind, where)


def _convert(value: Any, kind: Any, where: str) -> Any:
    try:
        return _fit(value, kind)
    except (ValueError, TypeError, KeyError, OverflowError, yaml.YAMLError):
        raise UserError(f"{where} expects {_describe(kind)}, got `{value}`") from None


def _fit(value: Any, kind: Any) -> Any:
    """The value as the type `kind`; raises ValueError and the like where it is none."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        # Everything fits text, and a path: null goes before, text comes last.
        for arm in sorted(args, key=lambda arm: (arm is not type(None), arm is str)):
            with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
                return _fit(value, arm)
        raise ValueError(value)
    if origin is Literal:
        return {str(choice): choice for choice in args}[str(value)]
    if _is_list(kind):
        if isinstance(value, str) and value.startswith("["):
            value = yaml.safe_load(value)
        items = value if isinstance(value, list) else [value]
        return origin(_fit(item, args[0] if args else Any) for item in items)
    if isinstance(value, str) and kind not in (str, Path, Any):
        value = yaml.safe_load(value)
    return value if kind is Any else _fit_plain(value, origin)


def _fit_plain(value: Any, kind: Any) -> Any:
    if kind is float and not isinstance(value, bool):
        return float(value)  # also from text: YAML 1.1 does not take `1e-5` for a number
    if kind is int and not isinstance(value, bool) and float(value) == int(float(value)):
        return value if isinstance(value, int) else int(float(value))
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind is Path:
        return Path(value)
    if kind in (bool, dict, type(None)) and isinstance(value, kind):
        return value
    raise ValueError(value)


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (list, tuple)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_describe, get_args(kind)))
    items = next(iter(get_args(kind)), None)
    if _is_list(kind) and get_origin(items) is Literal:
        return "a list of " + ", ".join(map(str, get_args(items)))
    return _EXPECTED.get(get_origin(kind) or kind, str(kind))


def _help(
    fields: Mapping[str, dataclasses.Field[Any]],
    kinds: Mapping[str, Any],
    program: str,
    about: str,
    bare: str | None,
) -> str:
    usage = f"{program} {bare.upper()}" if bare is not None else program
    lines = [f"usage: {usage} [--config FILE.yaml] [--key value ...]", "", about.strip(), ""]
    for name, field in sorted(fields.items(), key=lambda item: not _required(item[1])):
        kind = kinds[name]
        shown = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        notes = ["required" if _required(field) else "", field.metadata.get("help", "")]
        if field.default not in (None, dataclasses.MISSING):
            notes.append(f"default {field.default}")
        lines.append(f"  {_flag(name)} <{shown}>  {'; '.join(filter(None, notes))}")
    return "\n".join(lines) + "\n"
