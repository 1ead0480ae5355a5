"""RLCD: a base model that is right more often under positive descriptions, and a labeller."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Reply, Request
from benchmarks._contrast.case import Case, program
from benchmarks._contrast.fallible import answer, draws, preference, task_in
from benchmarks._contrast.policies import RIGHT, SKILL, decided, prompts, share
from data_builders.affixes import read_affixes

POSITIVE, NEGATIVE = 0.85, 0.25
"""How often the base model is right under each description."""
BROKEN = 0.1
"""How often a continuation has no end and is drawn anew."""

_KINDS = {affix.positive: POSITIVE for affix in read_affixes("harmlessness")}


def base_model(request: Request) -> str:
    """Goes on with a transcript as the description before its last colon has it."""
    rng = draws(request)
    if rng.random() < BROKEN:
        return " and so on"
    found = re.search(r"Assistant(?: \(([^()]*)\))?:$", str(request.prompt))
    description = found[1] if found else None
    chance = RIGHT if description is None else _KINDS.get(description, NEGATIVE)
    text = answer(task_in(request.prompt), right=rng.random() < chance, rng=rng)
    return f" {text}\n\nHuman: Thanks."


def labeller(request: Request) -> Reply:
    """Log-probs of the letters A and B that favour the right answer, sometimes the wrong one."""
    shown = sections(as_text(request.prompt))
    task = task_in(shown["task"])
    verdict = preference(task, shown["answer_A"], shown["answer_B"], SKILL, draws(request))
    first = {"A": 0.9, "B": 0.1, "tie": 0.5}[verdict]
    top = {"A": math.log(first), "B": math.log(1 - first)}
    return Reply("A", "length", top_logprobs=(top,))


def _words(label: str) -> Callable[[Path, int, int], Sequence[object]]:
    def words(folder: Path, count: int, seed: int) -> Sequence[object]:
        source, model = prompts(folder, count, seed), program("rlcd.base_model")
        asked = ("--input", source, "--model", model, "--label", label)
        if label == "provenance":
            return asked
        judge = ("--judge-model", program("rlcd.labeller"), "--labels-by", "top_logprobs")
        return (*asked, *judge)

    return words


_WON, _LOST = POSITIVE * (1 - NEGATIVE), (1 - POSITIVE) * NEGATIVE

CASES = (
    Case(
        "rlcd",
        "provenance",
        _words("provenance"),
        share(_WON, _LOST),
        "right under the positive description (0.85) and wrong under the negative one (0.75), or "
        "the reverse: 0.6375 / (0.6375 + 0.0375)",
        decided,
    ),
    Case(
        "rlcd",
        "rescore",
        _words("rescore"),
        SKILL,
        "the label is true (0.8) wherever the sides differ",
        decided,
    ),
    Case(
        "rlcd",
        "agree",
        _words("agree"),
        share(_WON * SKILL, _LOST * (1 - SKILL)),
        "provenance and label are both true, or both false: 0.51 / (0.51 + 0.0075)",
        decided,
    ),
    Case("rlcd", "rlaif", _words("rlaif"), SKILL, "as for `rescore`", decided),
)
