"""How good a judge is: its verdicts against labels of humans, and a win rate without its errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.cli import UserError, check_counts, parse, run, tell, unknown
from alignment.core.rows import read_rows
from eval.coefficients import cohen_kappa, gwet_ac1, krippendorff_alpha, rogan_gladen
from eval.labelled_pairs import FIRST, SECOND, TIE, LabelledPair, Verdicts, read_pairs
from eval.stats import ENOUGH_JUDGED, bootstrap_mean, check_seed

LABELS = (TIE, FIRST, SECOND)
_MEASURES = ("apparent", "sensitivity", "specificity", "corrected", "corrected_ci")
_SCORES = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}
_MEANS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What the mean score of two orders can be."""


@dataclass(kw_only=True)
class Options:
    """Options of `alignment eval agreement`."""

    pairs: Path = field(metadata={"help": "pairs with labels of humans and verdicts of judges"})
    verdicts: Path | None = field(
        default=None, metadata={"help": "verdicts.jsonl of a judge in `--pairs`, to be corrected"}
    )
    judge: str | None = field(
        default=None, metadata={"help": "whose verdicts those are, if `--pairs` has several judges"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    resamples: int = field(default=10_000, metadata={"help": "resamples of the bootstrap"})
    allow_missing: bool = field(
        default=False,
        metadata={"help": f"report although a judge said less than {ENOUGH_JUDGED:.0%}"},
    )
    json: str | None = field(
        default=None, metadata={"help": "file for the report as JSON; `-` is standard output"}
    )

    def __post_init__(self) -> None:
        check_counts(self, "resamples")
        check_seed(self)


def among_annotators(pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    """How far humans agree: kappa and AC1 of any two, Krippendorff's alpha of all."""
    names = [*pairs[0].annotators]
    labels = {name: [pair.annotators.get(name) for pair in pairs] for name in names}
    found: dict[str, Any] = {"kappa": {}, "ac1": {}}
    for one, two in combinations(names, 2):
        versus = f"{one}_vs_{two}"
        found["kappa"][versus] = cohen_kappa(labels[one], labels[two])
        both = [*zip(labels[one], labels[two], strict=True)]
        found["ac1"][versus] = gwet_ac1(both, len(LABELS))
    every = [[*pair.annotators.values()] for pair in pairs]
    return {**found, "alpha": krippendorff_alpha(every)}


def of_judge(
    pairs: Sequence[LabelledPair], judge: str, seed: int, resamples: int
) -> dict[str, Any]:
    """How a judge's verdicts agree with the labels.

    A verdict that cannot be read agrees with no label. Of a judge that was asked in both orders,
    accuracy is the mean of both, and coefficients are of the first.

    Args:
        pairs: Pairs that this judge was asked about.
        judge: Its name.
        seed: Seed of the bootstrap.
        resamples: Resamples of the bootstrap.
    """
    labels = [pair.label for pair in pairs]
    verdicts = [pair.judges[judge] for pair in pairs]
    first = [verdict.first for verdict in verdicts]
    right = [_share_right(label, said) for label, said in zip(labels, verdicts, strict=True)]
    rated = [*zip(labels, first, strict=True)]
    return {
        "n": len(pairs),
        "unparsed": sum(None in _said(verdict) for verdict in verdicts),
        "accuracy": fmean(right),
        "accuracy_ci": bootstrap_mean(right, seed, resamples),
        "kappa": cohen_kappa(labels, first),
        "ac1": gwet_ac1(rated, len({*LABELS} & {*labels, *first})),
        "alpha": krippendorff_alpha(rated),
        **macro(labels, first),
        **(in_both_orders(labels, verdicts) if all(said.both for said in verdicts) else {}),
        "length_bias": length_bias(pairs, judge),
        "win_rate": corrected_win_rate(pairs, judge, None, seed, resamples),
    }


def macro(labels: Sequence[int], verdicts: Sequence[int | None]) -> dict[str, float]:
    """Precision, recall and F1 of each label that occurs, averaged over labels."""
    found = []
    for label in sorted({*labels} | {said for said in verdicts if said is not None}):
        hits = sum(a == b == label for a, b in zip(labels, verdicts, strict=True))
        said, true = verdicts.count(label), labels.count(label)
        found.append(
            (hits / said if said else 0.0, hits / true if true else 0.0, 2 * hits / (said + true))
        )
    precision, recall, f1 = (fmean(values) for values in zip(*found, strict=True))
    return {"macro_precision": precision, "macro_recall": recall, "macro_f1": f1}


def in_both_orders(labels: Sequence[int], verdicts: Sequence[Verdicts]) -> dict[str, Any]:
    """What swapping the responses changes, in LLMBar's words; `average_accuracy` is in percent."""
    n = len(labels)
    first = [said.first for said in verdicts]
    swapped = [said.swapped for said in verdicts]
    right = [
        (one == label, two == label) for label, one, two in zip(labels, first, swapped, strict=True)
    ]
    agree = sum(one == two and one is not None for one, two in zip(first, swapped, strict=True))
    return {
        "correct_first_order": sum(one for one, _ in right),
        "correct_swapped": sum(two for _, two in right),
        "correct_both": sum(one and two for one, two in right),
        "orders_agree": agree,
        "position_consistency": agree / n,
        "average_accuracy": 100 * sum(map(sum, right)) / (2 * n),
        "kappa_with_label_first_order": cohen_kappa(labels, first),
        "kappa_between_orders": cohen_kappa(first, swapped),
    }


def length_bias(pairs: Sequence[LabelledPair], judge: str) -> dict[str, float] | None:
    """Whether the judge likes length more than humans do.

    Over pairs of different lengths on which label and verdict both take a side: how often each
    takes the longer response, their difference (`bias`), and the judge's accuracy where the longer
    and where the shorter response is the better one.

    Returns:
        None where there is no such pair.
    """
    rows = []
    for pair in pairs:
        for said in _said(pair.judges[judge]):
            if pair.lengths is None or pair.lengths[0] == pair.lengths[1]:
                continue
            if pair.label == TIE or said in (TIE, None):
                continue
            longer = FIRST if pair.lengths[0] > pair.lengths[1] else SECOND
            rows.append((said == longer, pair.label == longer))
    if not rows:
        return None
    judged, labelled = (fmean(column) for column in zip(*rows, strict=True))
    where = {
        f"accuracy_{name}_better": [said == label for said, label in rows if label is better]
        for name, better in (("longer", True), ("shorter", False))
    }
    return {
        "judge_prefers_longer": judged,
        "humans_prefer_longer": labelled,
        "bias": judged - labelled,
        **{name: fmean(hits) for name, hits in where.items() if hits},
    }


def corrected_win_rate(
    pairs: Sequence[LabelledPair],
    judge: str,
    scores: Sequence[float] | None,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """A win rate of the first response without the judge's errors, after Rogan and Gladen.

    Sensitivity is the judge's mean score of pairs whose first response humans prefer, specificity
    1 less that of pairs whose second they prefer; a tie scores one half, so that both hold for
    verdicts with ties. Pairs that humans call a tie tell neither.

    Args:
        pairs: Pairs that measure the judge.
        judge: Its name.
        scores: Its scores of other pairs, each in [0, 1], whose rate is corrected; those of
            `pairs` themselves if None.
        seed: Seed of the bootstrap, which draws all pairs anew.
        resamples: Resamples of the bootstrap.

    Returns:
        `apparent`, `sensitivity`, `specificity`, `corrected` and `corrected_ci`; the last two None
        where the judge tells nothing, or an interval reaches such judges.
    """
    # Both orders of a pair are one observation: they were not judged independently.
    cells = Counter((pair.label, _score(pair.judges[judge])) for pair in pairs)
    table = np.array([[cells[label, score] for score in _MEANS] for label in LABELS])
    rng = np.random.default_rng(seed)
    n = int(table.sum())
    if n == 0 or not table[1:].sum(axis=1).all():
        return dict.fromkeys(_MEASURES)
    drawn = rng.multinomial(n, table.ravel() / n, size=resamples).reshape(-1, *table.shape)
    tables = np.concatenate([table[None], drawn]).astype(float)  # (1 + resamples, labels, scores)
    if scores is None:
        apparent = _mean_score(tables.sum(axis=1))
    else:
        values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
        others = rng.multinomial(len(scores), counts / len(scores), size=resamples)
        apparent = np.concatenate([counts[None], others]) @ values / len(scores)
    sensitivity, specificity = _mean_score(tables[:, 1]), 1 - _mean_score(tables[:, 2])
    rates = rogan_gladen(apparent, sensitivity, specificity)
    known = np.isfinite(rates).all()
    ends = [*map(float, np.quantile(rates[1:], [0.025, 0.975]))] if known else None
    measured = (float(values[0]) for values in (apparent, sensitivity, specificity))
    corrected = float(rates[0]) if np.isfinite(rates[0]) else None
    return dict(zip(_MEASURES, (*measured, corrected, ends), strict=True))


def report(options: Options) -> dict[str, Any]:
    """Everything that the pairs tell of annotators and judges.

    Raises:
        UserError: The files cannot be read, or a judge said too little.
    """
    pairs, split = read_pairs(options.pairs)
    judges = [*dict.fromkeys(name for pair in pairs for name in pair.judges)]
    if not judges and len(pairs[0].annotators) < 2:
        raise UserError(f"{options.pairs}: there are no verdicts of judges, in no column")

    def told(rows: Sequence[LabelledPair]) -> dict[str, Any]:
        asked = {name: [pair for pair in rows if name in pair.judges] for name in judges}
        return {
            name: of_judge(own, name, options.seed, options.resamples)
            for name, own in asked.items()
            if own
        }

    subsets = [*dict.fromkeys(pair.subset for pair in pairs if pair.subset is not None)]
    counts = Counter(pair.label for pair in pairs)
    made: dict[str, Any] = {
        "rows": len(pairs) + split,
        "without_majority": split,
        "labels": {str(label): counts[label] for label in LABELS},
        **(among_annotators(pairs) if len(pairs[0].annotators) > 1 else {}),
        "judges": told(pairs),
        "subsets": {
            subset: told([pair for pair in pairs if pair.subset == subset]) for subset in subsets
        },
    }
    if not options.allow_missing:
        _refuse_silent(made["judges"])
    if options.verdicts is not None:
        made["corrected"] = _of_verdicts(options, pairs, judges)
    return {**made, "seed": options.seed, "resamples": options.resamples}


def _of_verdicts(
    options: Options, pairs: Sequence[LabelledPair], judges: Sequence[str]
) -> dict[str, Any]:
    """The corrected win rate of another run's verdicts."""
    judge = options.judge or (judges[0] if len(judges) == 1 else None)
    if judge is None:
        raise UserError(f"give `--judge`, one of {', '.join(judges)}: whose verdicts are they?")
    if judge not in judges:
        raise unknown("judge", judge, judges)
    scores = []
    for name, row in read_rows(Path(str(options.verdicts))):
        score = row.get("score")
        if score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
            raise UserError(f"{name}: `score` must be from 0 to 1 or null, got `{score}`")
        scores.append(score)
    known = [score for score in scores if score is not None]
    if not known:
        raise UserError(f"{options.verdicts}: no row has a `score`")
    own = [pair for pair in pairs if judge in pair.judges]
    made = corrected_win_rate(own, judge, known, options.seed, options.resamples)
    return {"judge": judge, "n": len(known), "unjudged": len(scores) - len(known), **made}


def _refuse_silent(judges: dict[str, Any]) -> None:
    for name, made in judges.items():
        if made["n"] - made["unparsed"] < ENOUGH_JUDGED * made["n"]:
            raise UserError(
                f"{name} gave readable verdicts on {made['n'] - made['unparsed']} of {made['n']} "
                "pairs; pass `--allow-missing` to count the others as wrong"
            )


def _said(verdicts: Verdicts) -> Iterator[int | None]:
    """The verdicts of all orders that were asked for."""
    yield verdicts.first
    if verdicts.both:
        yield verdicts.swapped


def _score(verdicts: Verdicts) -> float | None:
    """The mean score of the orders that could be read, None where none could."""
    scores = [_SCORES[said] for said in _said(verdicts) if said is not None]
    return fmean(scores) if scores else None


def _share_right(label: int, verdicts: Verdicts) -> float:
    return fmean(said == label for said in _said(verdicts))


def _mean_score(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of the scores `_MEANS` that the last axis counts."""
    totals = counts.sum(axis=-1)
    sums = counts @ np.array(_MEANS)
    means = np.full(np.shape(totals), np.nan)
    np.divide(sums, totals, out=means, where=totals > 0)
    return means


def main(argv: list[str]) -> None:
    """`alignment eval agreement`."""
    options = parse(Options, argv, "alignment eval agreement", __doc__)
    made = report(options)
    tell(made, options.json, lines(made))


def lines(made: dict[str, Any]) -> Iterator[str]:
    """A report to read."""
    yield f"{made['rows']} pairs, {made['without_majority']} without a majority"
    for versus, kappa in made.get("kappa", {}).items():
        yield f"{versus}: kappa {kappa:.3f}, AC1 {made['ac1'][versus]:.3f}"
    if made.get("alpha") is not None:
        yield f"all annotators: Krippendorff's alpha {made['alpha']:.3f}"
    for name, judge in made["judges"].items():
        low, high = judge["accuracy_ci"]
        told = f"{name}: accuracy {judge['accuracy']:.3f}, 95% interval [{low:.3f}, {high:.3f}]"
        for key in ("kappa", "ac1", "position_consistency"):
            if judge.get(key) is not None:
                told += f", {key.replace('_', ' ')} {judge[key]:.3f}"
        if judge["length_bias"]:
            told += f", length bias {judge['length_bias']['bias']:+.3f}"
        yield told
    if "corrected" in made:
        own = made["corrected"]
        yield f"win rate {own['apparent']:.3f} by {own['judge']}, corrected {_shown(own)}"


def _shown(own: dict[str, Any]) -> str:
    if own["corrected"] is None:
        return "unknown: the judge tells nothing"
    told = f"{own['corrected']:.3f}"
    if own["corrected_ci"] is None:
        return f"{told}, without interval: the judge may tell nothing"
    low, high = own["corrected_ci"]
    return f"{told}, 95% interval [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    run(main)
