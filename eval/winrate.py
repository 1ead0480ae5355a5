"""Win rate of answers over a baseline's answers to the same prompts, by a judge in both orders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.cli import UserError, parse, run, say
from alignment.core.rows import read_rows
from alignment.llm.connect import CallOptions, connect, open_ledger, run_rows
from alignment.llm.prompts import as_text, shorten
from alignment.llm.protocol import Sampling
from alignment.llm.rows import Reject, Row, prompt_of, response_of
from eval.judge import compare, pairwise_judge
from eval.stats import ENOUGH_JUDGED, refuse_unjudged, summarise


@dataclass(kw_only=True)
class Options(CallOptions):
    """Options of `alignment eval winrate`."""

    answers: Path = field(metadata={"help": "file of rows with `prompt` and `response`"})
    baseline: Path = field(metadata={"help": "file of other answers to the same prompts"})
    output: Path = field(metadata={"help": "folder for results.json and verdicts.jsonl"})
    judge_model: str = field(metadata={"help": "the judge: a name on its server, or a folder"})
    judge_url: str | None = field(
        default=None, metadata={"help": "address of the judge's server; unset, it runs here"}
    )
    judge_prompt: Path | None = field(
        default=None, metadata={"help": "prompt file with the fields prompt, first, second, fence"}
    )
    max_tokens: int = field(default=1024, metadata={"help": "longest reply of the judge"})
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    resamples: int = field(default=10_000, metadata={"help": "resamples of the bootstrap"})
    allow_missing: bool = field(
        default=False,
        metadata={"help": f"report although fewer than {ENOUGH_JUDGED:.0%} of prompts are judged"},
    )


def read_answers(path: str | Path) -> dict[str, list[str]]:
    """The answers of a file by prompt, in the order of the file; a prompt may have several.

    A model that said nothing has answered: its empty answer is judged like any other.

    Raises:
        UserError: A row lacks a prompt or an answer; the row is named.
    """
    answers: dict[str, list[str]] = {}
    for name, row in read_rows(path):
        try:
            answer = "" if row.get("response") == "" else response_of(row)
            answers.setdefault(as_text(prompt_of(row)), []).append(answer)
        except Reject as error:
            raise UserError(f"{name}: {error}") from None
    if not answers:
        raise UserError(f"{path}: the file holds no answers")
    return answers


def paired(
    answers: Mapping[str, Sequence[str]], baseline: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, str]]:
    """Prompt, answer and baseline's answer, matched by prompt and never by position.

    Raises:
        UserError: The prompts differ, or a prompt has more answers on one side.
    """
    for mine, theirs, side in ((answers, baseline, "answers"), (baseline, answers, "baseline")):
        alone = [prompt for prompt in mine if prompt not in theirs]
        if alone:
            raise UserError(
                f"answers and baseline have different prompts: {len(alone)} of {len(mine)} stand "
                f"in `{side}` alone, the first is `{shorten(alone[0])}`"
            )
    for prompt, mine_of in answers.items():
        if len(mine_of) != len(baseline[prompt]):
            raise UserError(
                f"the prompt `{shorten(prompt)}` has {len(mine_of)} answers and "
                f"{len(baseline[prompt])} baseline answers; give as many of each"
            )
        for answer, other in zip(mine_of, baseline[prompt], strict=True):
            yield prompt, answer, other


def evaluate(options: Options) -> dict[str, Any]:
    """Judges all answers and writes `verdicts.jsonl` and `results.json`.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: Files do not fit, the judge cannot be asked, or too few verdicts can be read.
    """
    pairs = list(paired(read_answers(options.answers), read_answers(options.baseline)))
    verdicts = options.output / "verdicts.jsonl"
    with open_ledger(verdicts, options) as ledger:
        llm = connect(options.judge_model, options.judge_url, ledger, options)
        judge = pairwise_judge(
            llm, options.judge_prompt, Sampling(temperature=0.0, max_tokens=options.max_tokens)
        )

        async def judged(row: Row) -> list[Row]:
            return [{**row, **(await compare(judge, **row)).as_row()}]

        names = ("prompt", "answer", "baseline")
        rows = ((pair[0], dict(zip(names, pair, strict=True))) for pair in pairs)
        if not options.dry_run:
            (options.output / "results.json").unlink(missing_ok=True)
        run_rows(options, [llm], rows, judged, verdicts, total=len(pairs))
    results = {
        **summarise((row for _, row in read_rows(verdicts)), options.seed, options.resamples),
        "answers": str(options.answers),
        "baseline_answers": str(options.baseline),
        "judge": judge.identity(),
    }
    if not options.allow_missing:
        refuse_unjudged(results, verdicts)
    text = json.dumps(results, indent=2)
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    return results


def main(argv: list[str]) -> None:
    """`alignment eval winrate`."""
    options = parse(Options, argv, "alignment eval winrate", __doc__)
    results = evaluate(options)
    low, high = results["win_rate_ci"]
    say(
        f"win rate {results['win_rate']:.3f}, 95% interval [{low:.3f}, {high:.3f}] over "
        f"{results['n_prompts']} prompts: {results['wins']} wins, {results['losses']} losses, "
        f"{results['ties']} ties, {results['unjudged']} unjudged"
    )
    if results["position_consistency"] is not None:
        say(f"both orders agree in {results['position_consistency']:.0%} of comparisons")
    say(f"written to {options.output}")


if __name__ == "__main__":
    run(main)
