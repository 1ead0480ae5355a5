"""Training-free methods as other commands run them: settings to words, reports to figures.

words = generate_words({"model": folder, "prompts": file, "output": out, "report": report,
"contrast": "obrien_lewis", "amateur": other, "kl_from": folder})
alignment generate WORDS
figures = Figures.read(report)  # tokens_per_second, memory, kl_per_answer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alignment.decoding.figures import Figures as Figures  # for readers of reports


def generate_words(settings: Mapping[str, Any]) -> list[str]:
    """The words after `alignment generate` that say the same as keys of a recipe.

    Args:
        settings: Options of `alignment generate` by name; None leaves an option out.
    """
    words: list[str] = []
    for name, value in settings.items():
        if value is not None:
            said = json.dumps(value) if isinstance(value, bool | Mapping) else str(value)
            words += [f"--{name.replace('_', '-')}={said}"]
    return words
