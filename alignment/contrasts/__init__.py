"""Contrasts at decoding time: one method, one file, named after the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.contrasts.base import Contrast
from alignment.core.methods import available, load_method


def available_contrasts() -> list[str]:
    """The names that `--contrast` takes: the modules of this package."""
    return available(__name__)


def load_contrast(name: str, kwargs: Mapping[str, Any] | None = None) -> Contrast:
    """Builds the contrast of a name.

    Args:
        name: A module of `alignment.contrasts` (`adacad`), or the dotted path of a class.
        kwargs: Its hyper-parameters.

    Raises:
        ValueError: The name is unknown, or a hyper-parameter is (the nearest known one is
            suggested), or a value is out of range.
    """
    # The base is abstract; a subclass is what is built.
    return load_method(__name__, "contrast", Contrast, name, kwargs)  # type: ignore[type-abstract]
