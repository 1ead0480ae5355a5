"""Win rates and their uncertainty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.cli import UserError
from alignment.llm.prompts import shorten

ENOUGH_JUDGED = 0.95
"""Share of prompts below which a win rate is refused unless missing verdicts are allowed."""

_DRAWS = 512  # sets of signs in memory at a time


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


class WinRate(NamedTuple):
    """How often an answer is preferred, over prompts.

    Attributes:
        win_rate: Mean score over judged prompts, in [0, 1]; a tie counts one half.
        win_rate_ci: 95% bootstrap interval over prompts.
        n_prompts: Prompts judged.
        wins: Prompts with a score above one half.
        losses: Prompts with a score below one half.
        ties: Prompts with a score of one half.
        unjudged: Prompts without a score, which count in nothing above.
    """

    win_rate: float
    win_rate_ci: Interval
    n_prompts: int
    wins: int
    losses: int
    ties: int
    unjudged: int


class HeadToHead(NamedTuple):
    """A model against a baseline, in AlpacaEval's words; percent, and counts of prompts.

    Attributes:
        win_rate: 100 * mean preference.
        standard_error: 100 * standard deviation (n - 1) / sqrt(n); None for a single prompt.
        discrete_win_rate: As `win_rate`, with every preference rounded to a win, a loss or a draw.
        n_total: Prompts judged.
        n_wins: Prompts with a preference above one half.
        n_wins_base: Prompts with a preference below one half.
        n_draws: Prompts with a preference of one half.
    """

    win_rate: float
    standard_error: float | None
    discrete_win_rate: float
    n_total: int
    n_wins: int
    n_wins_base: int
    n_draws: int


def check_seed(options: Any) -> None:
    """Refuses a seed below 0, which nothing can be drawn under.

    Args:
        options: What has it as `seed`.

    Raises:
        ValueError: It is below 0.
    """
    if options.seed < 0:
        raise ValueError(f"`seed` is {options.seed}; it must be at least 0")


def head_to_head(preferences: npt.ArrayLike) -> HeadToHead:
    """The numbers of AlpacaEval's table that need no lengths.

    Args:
        preferences: (n,) in [0, 1], 1 where the model wins.

    Raises:
        ValueError: There are no preferences.
    """
    data = np.asarray(preferences, dtype=np.float64)
    if not data.size:
        raise ValueError("a win rate needs at least one preference")
    wins, losses = int((data > 0.5).sum()), int((data < 0.5).sum())
    draws = data.size - wins - losses
    error = 100 * float(data.std(ddof=1)) / data.size**0.5 if data.size > 1 else None
    discrete = 100 * (wins + draws / 2) / data.size
    return HeadToHead(100 * float(data.mean()), error, discrete, data.size, wins, losses, draws)


def bootstrap_mean(
    values: npt.ArrayLike, seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The percentile bootstrap interval of a mean.

    Args:
        values: (n,) independent values, one for each prompt.
        seed: Seed of the resampling.
        resamples: How often the values are drawn anew.
        level: Coverage.

    Raises:
        ValueError: There are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("a bootstrap needs at least one value")
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(0, data.size, data.size)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def sign_flip(differences: npt.ArrayLike, seed: int, resamples: int = 10_000) -> float:
    """The two-sided p-value of a paired test: the mean is that large by the draw of signs alone.

    All signs are gone through where they are not more than `resamples`, which is exact; else as
    many are drawn.

    Args:
        differences: (n,) one for each prompt.
        seed: Seed of the draws.
        resamples: Most sets of signs to look at.

    Raises:
        ValueError: There are no differences.
    """
    data = np.asarray(differences, dtype=np.float64)
    if not data.size:
        raise ValueError("a test needs at least one difference")
    data = data[data != 0]  # their sign is nothing
    observed = abs(float(data.sum())) - 1e-9 * float(np.abs(data).sum())  # rounding is no excess
    if 2**data.size <= resamples:
        bits = np.arange(2**data.size)[:, None] >> np.arange(data.size) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * bits) @ data) >= observed))
    rng = np.random.default_rng(seed)
    beyond = 0
    for first in range(0, resamples, _DRAWS):
        size = (min(_DRAWS, resamples - first), data.size)
        signs = 1.0 - 2.0 * rng.integers(0, 2, size, dtype=np.int8)
        beyond += int((np.abs(signs @ data) >= observed).sum())
    return (beyond + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, by Holm's step-down method.

    Paper: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 6 (1979). Whatever is true, the chance that any test errs stays below the level.

    Args:
        p_values: (n,) of n tests.

    Returns:
        (n,) in the same order, each in [0, 1].
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def win_rate(scores: Sequence[float | None], seed: int, resamples: int = 10_000) -> WinRate:
    """The win rate of per-prompt scores.

    Args:
        scores: (n,) in [0, 1], None for a prompt without a readable verdict.
        seed: Seed of the bootstrap.
        resamples: Resamples of the bootstrap.

    Raises:
        ValueError: No prompt has a score.
    """
    judged = [score for score in scores if score is not None]
    interval = bootstrap_mean(judged, seed, resamples)
    wins, losses = sum(score > 0.5 for score in judged), sum(score < 0.5 for score in judged)
    ties = len(judged) - wins - losses
    mean = float(np.mean(judged))
    return WinRate(mean, interval, len(judged), wins, losses, ties, len(scores) - len(judged))


def summarise(
    verdicts: Iterable[Mapping[str, Any]],
    seed: int,
    resamples: int = 10_000,
    unanswered: int = 0,
) -> dict[str, Any]:
    """The numbers of a report from rows of `verdicts.jsonl`.

    Several comparisons of a prompt are averaged first: the bootstrap is over prompts. A prompt
    with a comparison that has no score is unjudged, and so is one without an answer.

    Args:
        verdicts: Rows with `prompt`, `answer`, `baseline` and a comparison's columns.
        seed: Seed of the bootstrap.
        resamples: Resamples of the bootstrap.
        unanswered: Prompts that are not among the rows because a model gave no answer to them.

    Raises:
        UserError: No prompt is judged; it shows what the judge said.
    """
    rows = list(verdicts)
    scores: dict[str, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row["prompt"], []).append(row["score"])
    per_prompt = [_mean_or_none(several) for several in scores.values()]
    votes = [vote for row in rows for vote in row["votes"]]
    faulty = [vote for vote in votes if vote["fault"]]
    if all(score is None for score in per_prompt):
        first = faulty[0]
        remedy = "mend that and pass `--resume`"
        if first["fault"] == "unparseable":
            remedy = "the judge must end with a line such as `Verdict: A`"
        raise UserError(
            f"no prompt has readable verdicts in both orders ({len(faulty)} of {len(votes)} "
            f"cannot be read); the first is {first['fault']}: `{shorten(first['text'])}`; {remedy}"
        )
    consistent = [row["consistent"] for row in rows if row["consistent"] is not None]
    rate = win_rate(per_prompt, seed, resamples)
    return {
        **rate._replace(unjudged=rate.unjudged + unanswered)._asdict(),
        "unanswered": unanswered,
        "n_comparisons": len(rows),
        "identical": sum(not row["votes"] for row in rows),
        "unreadable_verdicts": len(faulty),
        "faults": dict(sorted(Counter(vote["fault"] for vote in faulty).items())),
        "position_consistency": fmean(consistent) if consistent else None,
        "answer_length": fmean(len(row["answer"]) for row in rows),
        "baseline_length": fmean(len(row["baseline"]) for row in rows),
        "seed": seed,
        "resamples": resamples,
    }


def refuse_unjudged(results: Mapping[str, Any], *files: str | Path) -> None:
    """Refuses a win rate that too many verdicts are missing from.

    Args:
        results: As `summarise` gives them.
        *files: Those that show what the judge said, and why answers are missing.

    Raises:
        UserError: Fewer prompts are judged than `ENOUGH_JUDGED` demands.
    """
    prompts = results["n_prompts"] + results["unjudged"]
    if results["n_prompts"] < ENOUGH_JUDGED * prompts:
        missing = {"without an answer": results["unanswered"], **results["faults"]}
        faults = ", ".join(f"{count} {fault}" for fault, count in missing.items() if count)
        raise UserError(
            f"only {results['n_prompts']} of {prompts} prompts have readable verdicts in both "
            f"orders ({faults}); see {', '.join(map(str, files))}, or pass `--allow-missing "
            "--resume`"
        )


def _mean_or_none(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None
