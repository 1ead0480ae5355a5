"""What a length-controlled win rate costs: the exact fit here against liblinear's.

    python -m benchmarks.evaluation [--json FILE]

Both choose C by cross-validation and fit with it: `eval.length_control`, and scikit-learn's
`LogisticRegressionCV` with liblinear, soft targets as doubled weighted rows, and the folds and
loss of AlpacaEval's code. They take turns in one process. Beside the times stand the differences:
the C chosen, the win rate, and how far each is above the minimum of the objective. The data are
AlpacaEval's published verdicts where `../shared` (or ALIGNMENT_SHARED) holds them, else made-up
rows of the same number.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks._measure import table
from eval import length_control
from eval.annotations import Annotation, Benchmark, read_annotations, read_reference
from eval.length_control import CS, FOLDS, Design, Floats, Rows

PROMPTS = 805
SEED = 0


class Answer(NamedTuple):
    """What a side makes of a design.

    Attributes:
        c: The C it chose.
        weights: (k,) the fit with it.
    """

    c: float
    weights: Floats


def here(rows: Design) -> Answer:
    """This project's fit."""
    c = length_control.choose_c(rows)
    return Answer(c, length_control.fit(rows, c).weights)


def liblinear(rows: Design) -> Answer:
    """The same by scikit-learn, as AlpacaEval's code sets it up."""
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    sklearn.set_config(enable_metadata_routing=True)
    warnings.filterwarnings("ignore", module="sklearn")
    targets, weights = np.tile(rows.targets, 2), np.tile(rows.weights, 2)
    labels = np.repeat([1, 0], len(rows.targets))
    scorer = make_scorer(_soft_loss, response_method="predict_proba", greater_is_better=False)
    model = LogisticRegressionCV(
        **{"Cs": CS, "cv": GroupKFold(FOLDS), "solver": "liblinear", "fit_intercept": False},
        **{"l1_ratios": (1.0,), "random_state": 123, "use_legacy_attributes": False},
        scoring=scorer.set_score_request(target=True, row_weight=True),
    )
    model.set_fit_request(sample_weight=True).fit(
        np.tile(rows.features, (2, 1)),
        labels,
        sample_weight=weights * np.where(labels == 1, targets, 1 - targets),
        groups=np.tile(np.arange(len(rows.targets)), 2),
        **{"target": targets, "row_weight": weights},
    )
    return Answer(float(model.C_), model.coef_[0])


def _soft_loss(_: Any, chances: Floats, target: Floats, row_weight: Floats) -> float:
    loss = target * np.log(chances) + (1 - target) * np.log(1 - chances)
    return -float(np.mean(row_weight * loss))


def published(folder: Path) -> dict[str, Design]:
    """The published verdicts by model, paired as the published numbers pair them."""
    benchmark = Benchmark(folder / "prompts.jsonl.gz")
    reference = read_reference(folder / "lc_reference.csv.gz", benchmark)
    return {
        path.name.removesuffix(".jsonl.gz"): _design(
            benchmark, reference, read_annotations(path, benchmark).rows
        )
        for path in sorted((folder / "annotations").glob("*.jsonl.gz"))
    }


def _design(benchmark: Benchmark, reference: Rows, verdicts: Sequence[Annotation]) -> Design:
    prompts = [benchmark.prompts[row.prompt] for row in verdicts]
    length = length_control.length_feature(
        [len(row.answer or "") for row in verdicts],
        [len(prompt.baseline or "") for prompt in prompts],
    )
    difficulty = [benchmark.prompts[row.row].difficulty for row in verdicts]
    targets = [np.nan if row.preference is None else row.preference for row in verdicts]
    places = np.array([row.prompt for row in verdicts])
    rows = Rows(length, np.array(difficulty, float), np.array(targets, float), places)
    return length_control.design(rows, reference, by_row=True)


def made_up() -> dict[str, Design]:
    """As many rows as AlpacaEval has, of a judge that likes length."""
    rng = np.random.default_rng(SEED)
    difficulty = rng.normal(size=PROMPTS)
    prompt = np.tile(np.arange(PROMPTS), 2)

    def rows(length: Floats, prompt: Any, strength: float) -> Rows:
        logits = -1.5 * length + 0.7 * difficulty[prompt] + strength
        targets = 1 / (1 + np.exp(-3 * (logits + rng.normal(size=len(prompt)))))
        return Rows(length, difficulty[prompt], targets, prompt)

    gamed = rows(np.tanh(rng.normal(size=2 * PROMPTS)), prompt, 0.0)
    model = rows(np.tanh(rng.normal(size=PROMPTS)), prompt[:PROMPTS], -1.0)
    return {"made up": length_control.design(model, gamed, by_row=True)}


def above_minimum(rows: Design, answer: Answer) -> float:
    """Duality gap of an answer at its own C."""
    mass = answer.c * rows.weights
    return length_control.duality_gap(rows.features, rows.targets, mass, answer.weights)


def compare(rows: Design, rounds: int, resamples: int) -> dict[str, float]:
    """Times of both in turns, their differences, and the time of a bootstrap, in seconds."""
    sides: dict[str, Callable[[Design], Answer]] = {"here": here, "liblinear": liblinear}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers = {name: side(rows) for name, side in sides.items()}  # imports and warms up
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            answers[name] = side(rows)
            seconds[name].append(time.perf_counter() - started)
    started = time.perf_counter()
    length_control.bootstrap(rows, answers["here"].c, SEED, resamples)
    bootstrapped = time.perf_counter() - started
    mine, theirs = answers["here"], answers["liblinear"]
    rates = [length_control.win_rate(a.weights, rows.predicted) for a in (mine, theirs)]
    ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    return {
        "seconds_here": median(seconds["here"]),
        "seconds_liblinear": median(seconds["liblinear"]),
        "times_faster": median(ratios),
        "lowest_times_faster": min(ratios),
        "seconds_bootstrap": bootstrapped,
        "c_here": mine.c,
        "c_liblinear": theirs.c,
        "win_rate_here": rates[0],
        "win_rate_liblinear": rates[1],
        "gap_here": above_minimum(rows, mine),
        "gap_liblinear": above_minimum(rows, theirs),
    }


def lines(found: dict[str, dict[str, float]], resamples: int) -> list[list[str]]:
    """The rows of the table."""
    head = ["model", "ms here", "ms liblinear", "faster", "least", f"s, {resamples} refits"]
    head += ["C here", "C liblinear", "rate here", "differs by", "gap here", "gap liblinear"]
    return [head] + [
        [
            *(name, f"{1e3 * at['seconds_here']:.1f}", f"{1e3 * at['seconds_liblinear']:.1f}"),
            *(f"x{at['times_faster']:.1f}", f"x{at['lowest_times_faster']:.1f}"),
            *(f"{at['seconds_bootstrap']:.2f}", f"{at['c_here']:.4g}", f"{at['c_liblinear']:.4g}"),
            f"{at['win_rate_here']:.4f}",
            f"{at['win_rate_liblinear'] - at['win_rate_here']:+.4f}",
            *(f"{at['gap_here']:.0e}", f"{at['gap_liblinear']:.0e}"),
        ]
        for name, at in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args(arguments)
    shared = Path(os.environ.get("ALIGNMENT_SHARED", "../shared")) / "data" / "alpaca_eval"
    designs = published(shared) if shared.is_dir() else made_up()
    found = {
        name: compare(rows, options.rounds, options.resamples) for name, rows in designs.items()
    }
    print(table(lines(found, options.resamples)))
    faster = median(at["times_faster"] for at in found.values())
    print(f"a fit with cross-validation is {faster:.1f} times faster than liblinear's (median)")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
