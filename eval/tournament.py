"""The numbers of comparisons between any number of models, from the rows of `verdicts.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from eval.ratings import rate
from eval.stats import holm, sign_flip, summarise, win_rate

Row = Mapping[str, Any]
Pair = tuple[str, str]


def report(
    verdicts: Iterable[Row],
    seed: int,
    resamples: int,
    length_tolerance: float,
    unanswered: Iterable[Row] = (),
) -> dict[str, Any]:
    """All numbers of a run.

    Args:
        verdicts: Rows with `model`, `against`, `prompt`, `answer`, `baseline` and the columns of a
            comparison.
        seed: Seed of bootstraps and tests.
        resamples: Resamples of bootstraps and tests.
        length_tolerance: Share of the longer answer by which lengths may differ and still match.
        unanswered: For pairs of which a model gave no answer to some prompts: `model`, `against`,
            the number of those `prompts`, and the files of `rejects` that say why.

    Returns:
        `pairs` with the win rate of every pair, also over answers of matched length; `ratings` of
        more than two models; `paired_tests` between models that met the same opponent; p-values
        also corrected for the number of tests (Holm). The numbers of a single pair stand at the
        top, too.

    Raises:
        UserError: No prompt of a pair is judged.
    """
    by_pair: dict[Pair, list[Row]] = {}
    for row in verdicts:
        by_pair.setdefault((row["model"], row["against"]), []).append(row)
    lacking = {(row["model"], row["against"]): row for row in unanswered}
    none: Row = {"prompts": 0, "rejects": []}
    pairs = [
        {
            **{"model": pair[0], "against": pair[1]},
            **summarise(rows, seed, resamples, lacking.get(pair, none)["prompts"]),
            "rejects": lacking.get(pair, none)["rejects"],
            "length_matched": _length_matched(rows, seed, resamples, length_tolerance),
            "p_value": sign_flip([s - 0.5 for s in _scores(rows).values()], seed, resamples),
        }
        for pair, rows in by_pair.items()
    ]
    paired = _paired_tests(by_pair, seed, resamples)
    tests = [*pairs, *paired]
    corrected = holm([test["p_value"] for test in tests])
    for test, p_value in zip(tests, corrected, strict=True):
        test["p_value_holm"] = p_value
    return {
        **(pairs[0] if len(pairs) == 1 else {"seed": seed, "resamples": resamples}),
        "pairs": pairs,
        "paired_tests": paired,
        "ratings": _ratings(by_pair, seed, resamples) if len(pairs) > 1 else {},
        "length_tolerance": length_tolerance,
    }


def _scores(rows: Sequence[Row]) -> dict[str, float]:
    """Prompt -> mean score, without prompts that have a comparison without one."""
    several: dict[str, list[float | None]] = {}
    for row in rows:
        several.setdefault(row["prompt"], []).append(row["score"])
    return {
        prompt: fmean(known)
        for prompt, scores in several.items()
        if len(known := [s for s in scores if s is not None]) == len(scores)
    }


def _length_matched(
    rows: Sequence[Row], seed: int, resamples: int, tolerance: float
) -> dict[str, Any] | None:
    """The win rate over answers of about one length; None where there are none."""
    matched = [
        row
        for row in rows
        if abs(len(row["answer"]) - len(row["baseline"]))
        <= tolerance * max(len(row["answer"]), len(row["baseline"]))
    ]
    scores = list(_scores(matched).values())
    return win_rate(scores, seed, resamples)._asdict() if scores else None


def _paired_tests(
    by_pair: Mapping[Pair, Sequence[Row]], seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Models that met one opponent, prompt by prompt."""
    scores = {pair: _scores(rows) for pair, rows in by_pair.items()}
    found = []
    for one, two in combinations(scores, 2):
        shared = [prompt for prompt in scores[one] if prompt in scores[two]]
        if one[1] != two[1] or not shared:
            continue
        differences = [scores[one][prompt] - scores[two][prompt] for prompt in shared]
        found.append(
            {
                "models": [one[0], two[0]],
                "against": one[1],
                "n_prompts": len(shared),
                "difference": fmean(differences),
                "p_value": sign_flip(differences, seed, resamples),
            }
        )
    return found


def _ratings(
    by_pair: Mapping[Pair, Sequence[Row]], seed: int, resamples: int
) -> dict[str, dict[str, Any]]:
    """Bradley-Terry ratings, the best first."""
    models = list(dict.fromkeys(name for pair in by_pair for name in pair))
    prompts = list(dict.fromkeys(row["prompt"] for rows in by_pair.values() for row in rows))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    wins = np.zeros((len(prompts), len(models), len(models)))
    for (one, two), rows in by_pair.items():
        first, second = models.index(one), models.index(two)
        for prompt, score in _scores(rows).items():
            wins[place[prompt], first, second] += score
            wins[place[prompt], second, first] += 1 - score
    rated = dict(zip(models, rate(wins, seed, resamples), strict=True))
    best_first = sorted(rated, key=lambda model: -rated[model].rating)
    return {model: rated[model]._asdict() for model in best_first}
