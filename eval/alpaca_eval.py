"""AlpacaEval: win rates over a baseline, plain and length-controlled, with their uncertainty.

From verdicts that are already made: `--annotations FILE --prompts FILE`.
Paper: "Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators", arXiv
2404.04475.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignment.cli import UserError, parse, run, say
from eval.alpaca_report import (
    LengthControl,
    complaints,
    estimate_difficulty,
    refuse_unjudged,
    report,
)
from eval.annotations import Benchmark, read_annotations, read_reference
from eval.stats import ENOUGH_JUDGED


@dataclass(kw_only=True)
class Options:
    """Options of `alignment eval alpaca_eval`."""

    prompts: Path = field(metadata={"help": "file of prompts with the baseline's answers"})
    annotations: Path | None = field(
        default=None, metadata={"help": "verdicts already made; nothing is asked"}
    )
    model: str | None = field(default=None, metadata={"help": "whose verdicts to take"})
    baseline: Path | None = field(
        default=None, metadata={"help": "the baseline's answers, if not those beside the prompts"}
    )
    reference: Path | None = field(
        default=None, metadata={"help": "reference rows of the length-controlled model"}
    )
    c: float | None = field(
        default=None, metadata={"help": "inverse penalty of the fit; unset, by cross-validation"}
    )
    weights: tuple[float, ...] | None = field(
        default=None,
        metadata={"help": "weights of length, difficulty, model to take instead of a fit"},
    )
    difficulty_by: Literal["prompt", "row"] = field(
        default="prompt", metadata={"help": "row: pair difficulties as the published numbers do"}
    )
    difficulty_from: list[Path] | None = field(
        default=None, metadata={"help": "verdicts on other models, to estimate difficulty from"}
    )
    allow_missing: bool = field(
        default=False,
        metadata={"help": f"report although fewer than {ENOUGH_JUDGED:.0%} of prompts are judged"},
    )
    json: str | None = field(
        default=None, metadata={"help": "file to write all numbers to; `-` is standard output"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    resamples: int = field(default=1000, metadata={"help": "resamples of the bootstrap"})

    def __post_init__(self) -> None:
        if self.c is not None and not 0 < self.c < float("inf"):
            raise ValueError(f"`c` is {self.c}; it must be above 0")
        if self.weights is not None and len(self.weights) != 3:
            raise ValueError("`weights` takes three numbers: of length, difficulty and model")
        if self.resamples < 1:
            raise ValueError(f"`resamples` is {self.resamples}; it must be at least 1")


def from_verdicts(options: Options, annotations: Path) -> dict[str, Any]:
    """The numbers of verdicts that are already made.

    Raises:
        UserError: Files cannot be read or do not fit, or too few prompts are judged.
    """
    benchmark = Benchmark(options.prompts, options.baseline)
    found = read_annotations(annotations, benchmark, options.model)
    results = report(benchmark, found, _length_control(options, benchmark, found.model))
    if not options.allow_missing:
        refuse_unjudged(results, annotations)
    return results


def main(argv: list[str]) -> None:
    """`alignment eval alpaca_eval`."""
    options = parse(Options, argv, "alignment eval alpaca_eval", __doc__)
    if options.annotations is None:
        raise UserError("give `--annotations`")
    _tell(from_verdicts(options, options.annotations), options)


def _length_control(options: Options, benchmark: Benchmark, model: str | None) -> LengthControl:
    reference = options.reference and read_reference(options.reference, benchmark)
    files = options.difficulty_from
    estimated = estimate_difficulty(files, benchmark, model) if files else None
    return LengthControl(
        *(reference or None, options.c, options.weights, options.difficulty_by, estimated),
        *(options.seed, options.resamples),
    )


def _tell(results: dict[str, Any], options: Options) -> None:
    """Numbers to where `--json` says, or in words; what is odd about them to standard error."""
    for complaint in complaints(results):
        sys.stderr.write(f"note: {complaint}\n")
    text = json.dumps(results, indent=2, allow_nan=False)
    if options.json == "-":
        say(text)
        return
    if options.json is not None:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    error = results["standard_error"]
    say(
        f"win rate {results['win_rate']:.2f}"
        + (f" (standard error {error:.2f})" if error is not None else "")
        + f" over {results['n_total']} prompts: {results['n_wins']} wins, "
        f"{results['n_wins_base']} losses, {results['n_draws']} draws, "
        f"{results['unjudged']} unjudged"
    )
    if results["lc_ci"]:
        low, high = results["lc_ci"]
        say(
            f"length-controlled {results['length_controlled_winrate']:.2f}, 95% interval "
            f"[{low:.2f}, {high:.2f}], C = {results['lc_c']:.4g}; difficulty "
            f"{results['lc_difficulty']}"
        )


if __name__ == "__main__":
    run(main)
