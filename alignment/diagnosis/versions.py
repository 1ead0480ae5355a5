"""Packages: whether they are there, in the versions that go together, and whose names they are."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from alignment.diagnosis.finding import Finding

PROJECT = "contrastive-alignment"

_SAME_NAME = ("alignment-handbook", "alignment")
"""Other packages that are imported as `alignment`; the first is that of the alignment handbook."""


def check_versions() -> Iterator[Finding]:
    """Compares what is installed with what the project asks for."""
    yield Finding("ok", "python", platform.python_version())
    yield from check_name()
    try:
        wanted = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        yield Finding("broken", PROJECT, "is not installed, so its needs are unknown", "make venv")
        return
    for requirement in map(Requirement, wanted):
        yield from check_requirement(requirement)


def check_requirement(requirement: Requirement) -> Iterator[Finding]:
    """Whether a package is there in a version that the project takes; extras may be absent."""
    name, marker = requirement.name, requirement.marker
    is_extra = marker is not None and not marker.evaluate({"extra": ""})
    remedy = f'pip install "{name}{requirement.specifier}"'
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        if not is_extra:
            yield Finding("broken", name, "is missing", remedy)
        return
    if requirement.specifier.contains(found, prereleases=True):
        if not is_extra:
            yield Finding("ok", name, found)
        return
    told = f"{found} is installed, {requirement.specifier} is needed"
    if name == "trl":
        told += "; its trainer is extended by a private class, one minor version at a time"
    yield Finding("warning" if is_extra else "broken", name, told, remedy)


def check_name() -> Iterator[Finding]:
    """Whether another package is imported by the same name."""
    for other in metadata.distributions():
        name = canonicalize_name(other.metadata["Name"] or "")
        if name == PROJECT:
            continue
        files = {str(file) for file in other.files or ()}
        if name in _SAME_NAME or "alignment/__init__.py" in files:
            yield Finding(
                "broken",
                name,
                "is imported as `alignment` too, so either of the two hides the other",
                f"pip uninstall {name}, or give each an environment of its own",
            )
