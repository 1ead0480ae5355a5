"""Finds adapters and files, runs every case, and compares with what the reference produced."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.conformance.case import Adapter, Case

DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}

WITHOUT_LOSS = frozenset({"edits", "data", "decode"})
"""Levels of cases that compute labels, data or scores of a step: nothing is differentiated."""


class VectorError(ValueError):
    """A file that cannot be run; the message is one line for the user."""


@dataclass
class Report:
    """What came out of one file.

    Attributes:
        path: The file.
        objective: What the file says it is for.
        cases: How many cases it has.
        passed: How many of them agree in every value.
        worst: Largest `|got - expected| / max(1, |expected|)` over all values compared.
        misses: One line for each case that failed: the first value that differs, or the error.
        unchecked: Expected values that the adapter does not compute.
    """

    path: Path
    objective: str
    cases: int = 0
    passed: int = 0
    worst: float = 0.0
    misses: list[str] = field(default_factory=list)
    unchecked: set[str] = field(default_factory=set)


def adapters() -> dict[str, Adapter]:
    """Objective name -> adapter, over all modules of this package.

    Raises:
        VectorError: Two modules claim one objective.
    """
    package = importlib.import_module(__package__)
    found: dict[str, Adapter] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name == "__main__":
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for name, adapter in getattr(module, "OBJECTIVES", {}).items():
            if name in found:
                raise VectorError(f"objective `{name}` has two adapters: keep one of them")
            found[name] = adapter
    return found


def vector_files(paths: Iterable[Path]) -> list[Path]:
    """The files named, and every `*.json` below the folders named, in a stable order.

    Raises:
        VectorError: A path does not exist, or a folder holds no vector file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise VectorError(f"{path}: no such file or folder")
        below = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not below:
            raise VectorError(f"{path}: no *.json file in this folder")
        files += below
    return files


def run_file(path: Path, known: Mapping[str, Adapter]) -> Report:
    """Runs every case of one vector file.

    Raises:
        VectorError: The file is broken, or its objective has no adapter.
    """
    document = _read(path)
    objective = document["objective"]
    if objective not in known:
        raise VectorError(
            f"{path}: objective `{objective}` is unknown; known: {', '.join(sorted(known))}"
        )
    report = Report(path, objective)
    for index, record in enumerate(document["cases"]):
        case = _case(path, index, record, document.get("tolerance"))
        report.cases += 1
        try:
            comparison = _run(case, known[objective], report)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            report.misses.append(f"{path}: {case.name}: {type(error).__name__}: {error}")
            continue
        if comparison is None:
            report.passed += 1
        else:
            report.misses.append(f"{path}: {case.name}: {comparison}")
    return report


def _run(case: Case, adapter: Adapter, report: Report) -> str | None:
    """Runs one case; returns the first difference in words, or None."""
    got = dict(adapter(case, **_accepted(case, adapter)))
    if case.level not in WITHOUT_LOSS:
        got["grads"] = _gradients(case, got["loss"])
    first = None
    for name, value, expected in _expected_values(got, case.expected):
        if value is None:
            report.unchecked.add(name)
            continue
        for where, left, right in _numbers(value, expected, name):
            error, size = _error(left, right), abs(right) if math.isfinite(right) else 0.0
            report.worst = max(report.worst, error / max(1.0, size))
            if first is None and error > case.atol + case.rtol * size:
                first = f"expected.{where}: got {left!r}, reference {right!r}"
    return first


def _error(got: float, expected: float) -> float:
    """The absolute difference; two infinities of one sign agree, NaN agrees with nothing."""
    difference = 0.0 if got == expected else abs(got - expected)
    return difference if math.isfinite(difference) else math.inf


def _accepted(case: Case, adapter: Adapter) -> Mapping[str, Any]:
    """The params of a case, each of them one that the adapter names."""
    takes = [
        name
        for name, parameter in inspect.signature(adapter).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in case.params:
        if name not in takes:
            raise ValueError(f"params.{name} is unknown; the adapter takes {', '.join(takes)}")
    return case.params


def _gradients(case: Case, loss: Tensor) -> dict[str, Tensor]:
    names = list(case.expected["grads"])
    leaves = [case.floats(name) for name in names]
    if not names:
        return {}
    if not loss.requires_grad:
        raise ValueError("the loss carries no gradient")
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for name, leaf, grad in zip(names, leaves, grads, strict=True)
    }


def _expected_values(
    got: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, value (None where the adapter has none) and expected value; `null` expects nothing."""
    for name, want in expected.items():
        if isinstance(want, Mapping):
            inner = got.get(name, {})
            for key, value in want.items():
                yield f"{name}.{key}", inner.get(key), value
        elif want is not None:
            yield name, got.get(name), want


def _numbers(value: Any, expected: Any, where: str) -> Iterator[tuple[str, float, float]]:
    """Walks two nested lists side by side; ragged ones too."""
    if isinstance(value, Tensor):
        value = value.detach().tolist()
    if isinstance(expected, str) or isinstance(value, str):
        if value != expected:
            raise ValueError(f"expected.{where}: got {value!r}, the reference has {expected!r}")
        return
    if expected is None:
        expected = -math.inf  # what the format writes for it inside lists
    if isinstance(expected, list) != isinstance(value, list | tuple):
        raise ValueError(f"expected.{where}: got {value!r}, the reference has {expected!r}")
    if not isinstance(expected, list):
        yield where, float(value), float(expected)
        return
    if len(value) != len(expected):
        raise ValueError(f"expected.{where}: got {len(value)} values, not {len(expected)}")
    for index, (left, right) in enumerate(zip(value, expected, strict=True)):
        yield from _numbers(left, right, f"{where}[{index}]")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise VectorError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("objective"), str):
        raise VectorError(f"{path}: not a vector file: it names no `objective`")
    if not isinstance(document.get("cases"), list) or not document["cases"]:
        raise VectorError(f"{path}: not a vector file: it has no `cases`")
    return document


def _case(path: Path, index: int, record: Any, tolerance: Any) -> Case:
    try:
        exact = {"rtol": 0.0, "atol": 0.0}
        bounds = exact if record["dtype"] == "int64" else tolerance[record["dtype"]]
        case = Case(
            name=record["name"],
            level=record["level"],
            dtype=DTYPES[record["dtype"]],
            inputs=record["inputs"],
            params=record["params"],
            expected=record["expected"],
            rtol=float(bounds["rtol"]),
            atol=float(bounds["atol"]),
        )
        needed = () if case.level in WITHOUT_LOSS else ("loss", "grads")
        missing = [name for name in needed if name not in case.expected]
    except (KeyError, TypeError, ValueError) as error:
        raise VectorError(
            f"{path}: cases[{index}] is broken at {error}: a case needs name, level, dtype, "
            "inputs, params, expected, and the file a tolerance for its dtype"
        ) from None
    if missing:
        raise VectorError(f"{path}: cases[{index}].expected lacks {' and '.join(missing)}")
    return case
