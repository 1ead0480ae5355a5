"""PopAlign: a generator that is right more often where its prompt asks for a good answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from alignment.llm.prompts import as_text
from alignment.llm.protocol import Request
from benchmarks._contrast.case import Case, program, write
from benchmarks._contrast.fallible import answer, answers, draws, task_in
from benchmarks._contrast.policies import JUDGED, decided, prompts, share
from data_builders.strategies import Strategy, read_wording

CHANCES: dict[Strategy, tuple[float, float]] = {
    "prefix": (0.8, 0.5),
    "demonstration": (0.8, 0.4),
    "elicitive": (0.9, 0.2),
    "parameter_count": (0.85, 0.55),
    "leaderboard": (0.75, 0.55),
    "refine": (0.65, 0.6),
}
"""How often the chosen and the rejected side are right."""

_SAID = read_wording("general")
_SIGNS: dict[Strategy, tuple[str, str]] = {
    "prefix": (_SAID.prefix.positive, _SAID.prefix.negative),
    "demonstration": (_SAID.demonstrations[0].positive, _SAID.demonstrations[0].negative),
    "elicitive": (_SAID.elicitive.positive, _SAID.elicitive.negative),
}
"""What tells the prompts of both sides apart."""


def generator(request: Request) -> str:
    """Answers as a prompt asks for it; a plain prompt as the rejected side of `refine`."""
    words = as_text(request.prompt)
    chosen, plain = CHANCES["refine"]
    chance = chosen if _SAID.refine in words else plain
    for strategy, signs in _SIGNS.items():
        for sign, its in zip(signs, CHANCES[strategy], strict=True):
            chance = its if sign in words else chance
    text = _answer(request, chance)
    return f"## Thought\nSo.\n\n## Response\n{text}" if "## Thought" in words else text


def higher(request: Request) -> str:
    """The model that ranks higher."""
    return _answer(replace(request, sample=1), CHANCES["leaderboard"][0])


def lower(request: Request) -> str:
    """The model that ranks lower; its errors have nothing to do with the other one's."""
    return _answer(replace(request, sample=2), CHANCES["leaderboard"][1])


def _answer(request: Request, chance: float) -> str:
    rng = draws(request)
    return answer(task_in(request.prompt), right=rng.random() < chance, rng=rng)


def _words(strategy: Strategy) -> Callable[[Path, int, int], Sequence[object]]:
    def words(folder: Path, count: int, seed: int) -> Sequence[object]:
        asked = ("--input", prompts(folder, count, seed), "--strategies", strategy)
        if strategy == "parameter_count":
            return (*asked, *_files(folder, count, seed))
        if strategy == "leaderboard":
            return (
                *asked,
                *("--higher", program("popalign.higher"), "--lower", program("popalign.lower")),
            )
        model = ("--model", program("popalign.generator"))
        return (*asked, *model, *(JUDGED if strategy == "refine" else ()))

    return words


def _files(folder: Path, count: int, seed: int) -> Sequence[object]:
    """Answers made elsewhere, of a larger and of a smaller model."""
    words: list[object] = []
    for name, chance in zip(("larger", "smaller"), CHANCES["parameter_count"], strict=True):
        path = write(folder / f"{name}.jsonl", answers(count, seed, chance, name))
        words += [f"--{name}", path]
    return words


def _case(strategy: Strategy, chosen: float, rejected: float) -> Case:
    won, lost = chosen * (1 - rejected), (1 - chosen) * rejected
    why = (
        f"the chosen side is right ({chosen}) and the rejected one wrong ({1 - rejected:.2g}), or "
        f"the reverse: {won:.3g} / ({won:.3g} + {lost:.3g})"
    )
    return Case("popalign", strategy, _words(strategy), share(won, lost), why, decided)


CASES = tuple(_case(strategy, *chances) for strategy, chances in CHANCES.items())
