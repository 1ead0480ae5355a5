"""The numbers of an AlpacaEval report, from verdicts on one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alignment.cli import UserError
from eval import length_control
from eval.annotations import Annotation, Annotations, Benchmark, read_annotations
from eval.answers import warn_of_repetition
from eval.length_control import Design, Fit, Floats, Rows
from eval.stats import ENOUGH_JUDGED, head_to_head

WEIGHTS = ("length", "difficulty", "model")


@dataclass(frozen=True)
class LengthControl:
    """How the length-controlled win rate is fitted.

    Attributes:
        reference: Rows of the gamed baseline; None leaves them out.
        c: Inverse strength of the penalty; by cross-validation where it is None.
        weights: Weights to take instead of fitting: w_l, w_d, w_m.
        by: Whether a row has the difficulty of its prompt or, as published numbers have it, that of
            the prompt at its position.
        estimated: Difficulty of each prompt, estimated from verdicts on other models.
        seed: Seed of the bootstrap.
        resamples: Resamples of the bootstrap.
    """

    reference: Rows | None = None
    c: float | None = None
    weights: Sequence[float] | None = None
    by: Literal["prompt", "row"] = "prompt"
    estimated: Sequence[float] | None = None
    seed: int = 0
    resamples: int = 1000


def report(benchmark: Benchmark, found: Annotations, how: LengthControl) -> dict[str, Any]:
    """All numbers of the verdicts on a model.

    Args:
        benchmark: The prompts.
        found: The verdicts.
        how: How lengths are controlled for.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: Nothing is judged, or difficulties or baseline answers do not fit.
    """
    preferences = [row.preference for row in found.rows if row.preference is not None]
    if not preferences:
        raise UserError(f"none of {found.n_rows} rows has a preference: nothing is judged")
    answers = [row.answer for row in found.rows if row.answer is not None]
    complete = len(answers) == len(found.rows)
    return {
        "model": found.model,
        "baseline": benchmark.baseline_name,
        **head_to_head(preferences)._asdict(),
        "unjudged": len(benchmark) - len(preferences),
        "avg_length": int(np.mean([len(answer) for answer in answers])) if complete else None,
        **_length_controlled(benchmark, found, how),
        "n_prompts": len(benchmark),
        "n_rows": found.n_rows,
        "missing": found.missing,
        "doubled": found.doubled,
        "foreign": found.foreign,
        **(warn_of_repetition(found.model or "the model", answers) if answers else {}),
    }


def complaints(results: dict[str, Any]) -> list[str]:
    """What a reader of the numbers should know, one line each."""
    told = []
    for name, what in (
        ("missing", "prompts have no row"),
        ("doubled", "rows repeat a prompt; rows that contradict each other are dropped"),
        ("foreign", "rows are on prompts that are not in the benchmark, and are left out"),
    ):
        if listed := results[name]:
            told.append(f"{len(listed)} {what}: {_some(listed)}")
    if results["length_controlled_winrate"] is None:
        told.append(f"no length-controlled win rate: {results['lc_note']}")
    elif results["lc_note"]:
        told.append(f"length control: {results['lc_note']}")
    if judge := results.get("judge"):
        told += _of_the_judge(results, judge)
    return told


def _of_the_judge(results: Mapping[str, Any], judge: Mapping[str, Any]) -> list[str]:
    told = []
    hard, votes = results["hard_verdicts"], results["weighted_verdicts"] + results["hard_verdicts"]
    if hard:
        told.append(f"{hard} of {votes} verdicts are words, not probabilities")
    if not judge["official_prompt"]:
        told.append(
            "the judge prompt is not AlpacaEval's: not to be compared with published numbers"
        )
    return told


def refuse_unjudged(results: dict[str, Any], where: str | Path) -> None:
    """Refuses numbers that too many verdicts are missing from.

    Raises:
        UserError: Fewer prompts are judged than `ENOUGH_JUDGED` demands.
    """
    judged, prompts = results["n_total"], results["n_prompts"]
    if judged < ENOUGH_JUDGED * prompts:
        silent = results["unjudged"] - len(results["missing"])
        raise UserError(
            f"only {judged} of {prompts} prompts are judged in {where}, {ENOUGH_JUDGED:.0%} are "
            f"needed: {len(results['missing'])} without a row ({_some(results['missing'])}), "
            f"{silent} without a verdict; pass `--allow-missing` to report all the same"
        )


def estimate_difficulty(
    files: Sequence[Path], benchmark: Benchmark, model: str | None
) -> list[float]:
    """The difficulty of each prompt from verdicts on other models.

    It is the log-odds that a model wins against the baseline (one verdict of one half is added),
    scaled to mean 0 and standard deviation 1.

    Args:
        files: Verdicts on one model each.
        benchmark: The prompts.
        model: The model under test, whose own verdicts must not be among them.

    Returns:
        (prompts,) the difficulties.

    Raises:
        UserError: A file cannot be read or holds the model's own verdicts.
    """
    wins, judged = np.full(len(benchmark), 0.5), np.ones(len(benchmark))
    for path in files:
        found = read_annotations(path, benchmark)
        if found.model is not None and found.model == model:
            raise UserError(
                f"{path} holds verdicts on {model} itself; difficulty is estimated from others"
            )
        for row in found.rows:
            if row.preference is not None:
                wins[row.prompt] += row.preference
                judged[row.prompt] += 1
    odds = np.log(wins / (judged - wins))
    spread = odds.std()
    if not spread > 0:
        raise UserError(f"{', '.join(map(str, files))}: the verdicts tell no prompt from another")
    scaled: list[float] = ((odds - odds.mean()) / spread).tolist()
    return scaled


def _length_controlled(
    benchmark: Benchmark, found: Annotations, how: LengthControl
) -> dict[str, Any]:
    lengths = _lengths(benchmark, found)
    if isinstance(lengths, str):
        return _told(lengths)
    difficulty, source = _difficulty(benchmark, found.rows, how)
    prompts = np.array([row.prompt for row in found.rows])
    targets = np.array(
        [np.nan if row.preference is None else row.preference for row in found.rows], dtype=float
    )
    reference = how.reference
    if reference is not None and how.estimated is not None:
        reference = reference._replace(difficulty=np.array(how.estimated)[reference.prompt])
    length = length_control.length_feature(*lengths)
    mine = Rows(length, difficulty, targets, prompts)
    rows = length_control.design(mine, reference, by_row=how.by == "row")
    names = [name for name in WEIGHTS if difficulty is not None or name != "difficulty"]
    note = "" if reference is not None else "fitted without reference rows; give `--reference`"
    if how.weights is not None:
        given = np.array([w for w, name in zip(how.weights, WEIGHTS, strict=True) if name in names])
        return _told("with the weights given", rows, Fit(given, 0.0), names, difficulty=source)
    c = how.c if how.c is not None else length_control.choose_c(rows)
    fitted = length_control.fit(rows, c)
    interval = length_control.bootstrap(rows, c, how.seed, how.resamples)
    chosen = "given" if how.c is not None else "cross-validation"
    return _told(note, rows, fitted, names, c, interval, chosen=chosen, difficulty=source)


def _told(  # noqa: PLR0913 - one place for the keys of a report
    note: str,
    rows: Design | None = None,
    fitted: Fit | None = None,
    names: Sequence[str] = (),
    c: float | None = None,
    interval: tuple[float, float] | None = None,
    *,
    chosen: str | None = None,
    difficulty: str | None = None,
) -> dict[str, Any]:
    rate = weights = gap = None
    if rows is not None and fitted is not None:
        rate = length_control.win_rate(fitted.weights, rows.predicted)
        weights = dict(zip(names, map(float, fitted.weights), strict=True))
        gap = fitted.gap
    return {
        "length_controlled_winrate": rate,
        "lc_c": c,
        "lc_weights": weights,
        "lc_ci": interval and list(interval),
        "lc_c_by": chosen,
        "lc_difficulty": difficulty,
        "lc_gap": gap,
        "lc_note": note or None,
    }


def _lengths(benchmark: Benchmark, found: Annotations) -> tuple[list[int], list[int]] | str:
    """Characters of answers and of the baseline's, or what is missing to count them."""
    mine, theirs = [], []
    for row in found.rows:
        baseline = row.baseline
        if baseline is None:
            baseline = benchmark.prompts[row.prompt].baseline
        if row.answer is None or baseline is None:
            whose = "model" if row.answer is None else "baseline"
            name = benchmark.prompts[row.prompt].name
            return f"the {whose}'s answer to prompt {name} is not in the files"
        mine.append(len(row.answer))
        theirs.append(len(baseline))
    return mine, theirs


def _difficulty(
    benchmark: Benchmark, rows: Sequence[Annotation], how: LengthControl
) -> tuple[Floats | None, str]:
    """The difficulty of each row, None where it is left out, and where it comes from."""
    if how.estimated is not None:
        estimates = [how.estimated[row.prompt] for row in rows]
        return np.array(estimates), "estimated from other models"
    known = [prompt.difficulty for prompt in benchmark.prompts]
    lacking = known.count(None)
    if lacking == len(known):
        return None, "left out: the prompts have none"
    if lacking:
        raise UserError(
            f"{benchmark.path}: {lacking} of {len(known)} prompts lack `instruction_difficulty`; "
            "give it for all or for none"
        )
    if how.by == "prompt":
        places = [row.prompt for row in rows]
    else:
        places = [benchmark.place_of_row(row.row) for row in rows]
    return np.array(known, dtype=float)[places], f"given, by {how.by}"


def _some(listed: Sequence[object], most: int = 5) -> str:
    told = ", ".join(map(str, listed[:most]))
    return f"{told}, ..." if len(listed) > most else told or "none"
