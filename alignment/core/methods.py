"""Methods as frozen dataclasses: one file, one class, found by its name; its fields are checked."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class HasFields(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def available(package: str) -> list[str]:
    """The modules of a package of methods, each of which is the name of one."""
    found = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(found.__path__) if m.name != "base")


def load_method(
    package: str, what: str, base: type[T], name: str, kwargs: Mapping[str, Any] | None = None
) -> T:
    """Builds the method of a name.

    Args:
        package: Where methods lie, a module each with one subclass of `base`.
        what: What they are called, for messages; hyper-parameters are its `_kwargs`.
        base: What a method extends.
        name: A module of the package, or the dotted path of a class elsewhere.
        kwargs: Its hyper-parameters.

    Raises:
        ValueError: The name is unknown, or a hyper-parameter is (the nearest known one is
            suggested), or a value is out of range.
    """
    if "." in name:
        cls = _imported(what, base, name)
    else:
        known = available(package)
        if name not in known:
            hint = _hint(name, known)
            raise ValueError(f"{what} `{name}` is unknown: {hint}Known: {', '.join(known)}")
        module = importlib.import_module(f"{package}.{name}")
        cls = next(
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
        )
    known_fields = [f.name for f in fields(cls)]
    for key in kwargs or {}:
        if key not in known_fields:
            takes = ", ".join(known_fields) or "nothing"
            raise ValueError(
                f"{what}_kwargs.{key}: `{name}` has no such parameter; "
                f"{_hint(key, known_fields)}It takes: {takes}"
            )
    method: T = cls(**(kwargs or {}))
    return method


def check_kinds(method: HasFields) -> None:
    """Refuses values that do not fit the annotation of their field: a number, a `Literal`.

    Raises:
        ValueError: A hyper-parameter is of the wrong kind; field, value and remedy are named.
    """
    hints = get_type_hints(type(method))
    for known in fields(method):
        hint, value = hints[known.name], getattr(method, known.name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            remedy = f"choose one of {', '.join(map(repr, get_args(hint)))}"
        elif hint is float and not _is_number(value):
            remedy = "write a finite number (YAML reads 1e-4 as text: write 1.0e-4)"
        elif hint == (float | None) and value is not None and not _is_number(value):
            remedy = "write a finite number or null"
        elif hint is int and not _is_whole(value):
            remedy = "write a whole number"
        elif hint == (int | None) and value is not None and not _is_whole(value):
            remedy = "write a whole number or null"
        elif hint is bool and not isinstance(value, bool):
            remedy = "write true or false"
        else:
            continue
        raise ValueError(f"{type(method).__name__}.{known.name} is {value!r}: {remedy}")


def check_range(
    method: object,
    name: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Refuses a hyper-parameter that is not in `(above, inf)` and `[least, most]`.

    Raises:
        ValueError: It is not; the message names field, value and the range.
    """
    value = getattr(method, name)
    if not (above < value and least <= value <= most):
        bounds = {"above": above, "at least": least, "at most": most}
        wanted = " and ".join(f"{word} {x:g}" for word, x in bounds.items() if math.isfinite(x))
        raise ValueError(f"{type(method).__name__}.{name} is {value!r}: it must be {wanted}")


def _imported(what: str, base: type[Any], path: str) -> Any:
    """The class at a dotted path."""
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what} `{path}` cannot be imported: {error}; it must be the dotted path of a class"
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise ValueError(f"{what} `{path}` is not a subclass of alignment.{base.__name__}")
    return cls


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean `{near[0]}`? " if near else ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
