"""AlpacaEval: win rates over a baseline, plain and length-controlled, with their uncertainty.

From verdicts that are already made: `--annotations FILE --prompts FILE`. From a model or a file of
answers, and a judge: `--output FOLDER --prompts FILE --model MODEL --judge-model JUDGE`.
Paper: "Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators", arXiv
2404.04475.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignment.cli import check_counts, parse, run, say
from alignment.core.rows import read_rows
from alignment.llm.protocol import Sampling
from alignment.llm.rows import Row
from eval.alpaca_judge import Order, ask_model, judge_answers, votes
from eval.alpaca_report import (
    LengthControl,
    complaints,
    estimate_difficulty,
    refuse_unjudged,
    report,
)
from eval.annotations import Benchmark, read_annotations, read_reference
from eval.bundle import MANIFEST, seal, unseal, write_lines
from eval.judge_files import PREFERENCES, JudgeOptions, read_judge
from eval.stats import ENOUGH_JUDGED, check_seed

ANSWERS, VERDICTS, PROMPTS = "answers.jsonl", "verdicts.jsonl", "prompts.jsonl"
REFERENCE, RESULTS = "reference.jsonl", "results.json"


@dataclass(kw_only=True)
class Options(JudgeOptions):
    """Options of `alignment eval alpaca_eval`: judge answers, or report what was judged before."""

    prompts: Path | None = field(
        default=None, metadata={"help": "file of prompts with the baseline's answers"}
    )
    annotations: Path | None = field(
        default=None, metadata={"help": "verdicts already made; nothing is asked"}
    )
    bundle: Path | None = field(
        default=None, metadata={"help": "folder of a run to recompute; nothing is asked"}
    )
    output: Path | None = field(
        default=None, metadata={"help": "folder of a new run: answers, verdicts, results, bundle"}
    )
    answers: Path | None = field(
        default=None, metadata={"help": "the model's answers; unset, `--model` is asked"}
    )
    model: str | None = field(
        default=None, metadata={"help": "the model that answers; or whose annotations to take"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    temperature: float = field(default=0.7, metadata={"help": "of its answers; 0 is greedy"})
    max_tokens: int = field(default=2048, metadata={"help": "its longest answer, tokens"})
    judge: str = field(
        default="tokens", metadata={"help": "YAML of the judge, or the name of one in eval/judges"}
    )
    order: Order = field(
        default="both",
        metadata={"help": "published: one order, drawn as the published runs drew it"},
    )
    require_logprobs: bool = field(
        default=False, metadata={"help": "end where the judge returns no log-probs"}
    )
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
    seed: int = field(default=0, metadata={"help": "seed of the answers and of the bootstrap"})
    resamples: int = field(default=1000, metadata={"help": "resamples of the bootstrap"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(door is not None for door in (self.annotations, self.bundle, self.output)) != 1:
            raise ValueError(
                "give one of `--annotations FILE` and `--bundle FOLDER` to report what was judged, "
                "or `--output FOLDER` to judge"
            )
        if self.bundle is None and self.prompts is None:
            raise ValueError("`--prompts` is needed: a file of prompts with the baseline's answers")
        if self.output is not None and (self.answers is None) == (self.model is None):
            raise ValueError("give `--model` to be asked or `--answers` of a model, not both")
        if self.c is not None and not 0 < self.c < float("inf"):
            raise ValueError(f"`c` is {self.c}; it must be above 0")
        if self.weights is not None and len(self.weights) != 3:
            raise ValueError("`weights` takes three numbers: of length, difficulty and model")
        check_counts(self, "resamples")
        check_seed(self)


def from_annotations(options: Options) -> dict[str, Any]:
    """The numbers of verdicts that are already made.

    Raises:
        UserError: Files cannot be read or do not fit, or too few prompts are judged.
    """
    benchmark = Benchmark(_given(options.prompts), options.baseline)
    found = read_annotations(_given(options.annotations), benchmark, options.model)
    path = options.reference
    reference = None if path is None else read_reference(path, benchmark)
    how = LengthControl(reference, **_settings(options, benchmark, found.model))
    return _enough(report(benchmark, found, how), options, _given(options.annotations))


def from_bundle(folder: Path) -> dict[str, Any]:
    """The numbers of a run, from its folder alone.

    Raises:
        UserError: The folder is no whole bundle of this evaluator.
    """
    bundle = unseal(folder, "alpaca_eval")
    benchmark = Benchmark(folder / PROMPTS)
    reference = folder / REFERENCE
    rows = read_reference(reference, benchmark) if reference.is_file() else None
    found = read_annotations(folder / VERDICTS, benchmark)
    return {
        **report(benchmark, found, LengthControl(rows, **bundle.settings)),
        **votes(bundle.rows(VERDICTS)),
        "judge": bundle.judge,
    }


def evaluate(options: Options) -> dict[str, Any]:
    """Answers, judges, reports; writes a bundle with `results.json` into the output folder.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: Files do not fit, a model cannot be asked, or too few prompts are judged.
    """
    folder = _given(options.output)
    read_judge(options.judge, PREFERENCES)  # before the model is asked
    benchmark = Benchmark(_given(options.prompts), options.baseline)
    answers = options.answers or folder / ANSWERS
    if options.model is not None:
        sampling = Sampling(options.temperature, max_tokens=options.max_tokens, seed=options.seed)
        ask_model(
            *(options, benchmark, answers),
            model=options.model,
            base_url=options.base_url,
            sampling=sampling,
        )
    if not options.dry_run:
        for name in (RESULTS, MANIFEST):
            (folder / name).unlink(missing_ok=True)
    judge = judge_answers(
        *(options, benchmark, answers, folder / VERDICTS),
        order=options.order,
        require_logprobs=options.require_logprobs,
    )
    files = _beside_verdicts(folder, benchmark, answers, options.reference)
    model = read_annotations(folder / VERDICTS, benchmark).model
    seal(folder, "alpaca_eval", judge, _settings(options, benchmark, model), files)
    results = _enough(from_bundle(folder), options, folder / VERDICTS)
    text = json.dumps(results, indent=2, allow_nan=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    return results


def _beside_verdicts(
    folder: Path, benchmark: Benchmark, answers: Path, reference: Path | None
) -> list[str]:
    """Writes into a run's folder what its numbers depend on; the names of all its files."""
    contents: dict[str, list[Row]] = {
        ANSWERS: [row for _, row in read_rows(answers)],
        PROMPTS: benchmark.rows(),
    }
    if reference is None:
        (folder / REFERENCE).unlink(missing_ok=True)
    else:
        contents[REFERENCE] = [row for _, row in read_rows(reference)]
    for name, rows in contents.items():
        write_lines(folder / name, rows)
    return [VERDICTS, *contents]


def main(argv: list[str]) -> None:
    """`alignment eval alpaca_eval`."""
    options = parse(Options, argv, "alignment eval alpaca_eval", __doc__)
    if options.annotations is not None:
        results = from_annotations(options)
    elif options.bundle is not None:
        results = _enough(from_bundle(options.bundle), options, options.bundle / VERDICTS)
    else:
        results = evaluate(options)
    _tell(results, options)


def _enough(results: dict[str, Any], options: Options, where: Path) -> dict[str, Any]:
    """The results, told what is odd about them; raises where too few prompts are judged."""
    for complaint in complaints(results):
        sys.stderr.write(f"note: {complaint}\n")
    if not options.allow_missing:
        refuse_unjudged(results, where)
    return results


def _given(path: Path | None) -> Path:
    if path is None:
        raise ValueError("the options were not checked")
    return path


def _settings(options: Options, benchmark: Benchmark, model: str | None) -> dict[str, Any]:
    """What numbers depend on beside the files, as plain JSON: fields of `LengthControl`."""
    files = options.difficulty_from
    return {
        "c": options.c,
        "weights": options.weights,
        "by": options.difficulty_by,
        "estimated": estimate_difficulty(files, benchmark, model) if files else None,
        "seed": options.seed,
        "resamples": options.resamples,
    }


def _tell(results: dict[str, Any], options: Options) -> None:
    """Numbers as JSON where `--json` says, and in words unless that is standard output."""
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
