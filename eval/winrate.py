"""Win rates of answers over other answers to the same prompts, by a judge in both orders.

Any number of models: each against a baseline, or each against each. Beside win rates stand
position consistency, a comparison at matched lengths, Bradley-Terry ratings and paired tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import UserError, check_counts, parse, run, tell
from alignment.core.rows import read_rows
from alignment.llm.connect import open_ledger, run_rows
from alignment.llm.ledger import Ledger
from alignment.llm.options import ShardOptions
from alignment.llm.prompts import as_text, shorten
from alignment.llm.rows import Reject, Row, prompt_of, response_of
from eval.answering import AnswerOptions, answered, rejects_of, unanswered
from eval.answers import warn_of_repetition
from eval.bundle import MANIFEST, seal, unseal
from eval.judge import Judge, PairJudge, compare
from eval.judge_files import PREFERENCES, JudgeOptions, open_judge, read_judge
from eval.stats import ENOUGH_JUDGED, check_seed, refuse_unjudged
from eval.tournament import report

FOLLOWS_ORDER = 0.5
"""Share of comparisons with the same verdict in both orders below which the report warns."""


@dataclass(kw_only=True)
class Options(AnswerOptions, JudgeOptions, ShardOptions):
    """Options of `alignment eval winrate`; without a baseline each model meets each."""

    prompts: Path | None = field(
        default=None, metadata={"help": "file of prompts that `--model` answers"}
    )
    output: Path | None = field(
        default=None, metadata={"help": "folder for results.json, verdicts.jsonl and bundle"}
    )
    bundle: Path | None = field(
        default=None, metadata={"help": "folder of a run to recompute; nothing is asked"}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "longest reply of the judge, if not its YAML's"}
    )
    length_tolerance: float = field(
        default=0.1,
        metadata={"help": "share of the longer answer by which matched lengths may differ"},
    )
    seed: int = field(default=0, metadata={"help": "seed of bootstraps and tests"})
    resamples: int = field(default=10_000, metadata={"help": "resamples of bootstraps and tests"})
    allow_missing: bool = field(
        default=False,
        metadata={"help": f"report although fewer than {ENOUGH_JUDGED:.0%} of prompts are judged"},
    )
    json: str | None = field(
        default=None, metadata={"help": "file for the report as JSON; `-` is standard output"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "resamples")
        check_seed(self)
        if self.bundle is not None:
            if self.answers or self.model or self.output:
                raise ValueError(
                    "`--bundle` recomputes a run: leave out `--answers`, `--model`, `--output`"
                )
            return
        if not (self.answers or self.model):
            raise ValueError(
                "`alignment eval winrate` needs `--answers` (or `--model` to be asked, or "
                "`--bundle`)"
            )
        if not (self.baseline or self.baseline_model) and len(self.answers) < 2:
            raise ValueError(
                "`alignment eval winrate` needs `--baseline` (other answers to the same prompts), "
                "`--baseline-model` (to be asked for them), or several files in `--answers`"
            )
        if self.prompts is None and (self.model or self.baseline_model):
            raise ValueError("`--prompts` is needed: the file that the model is to answer")
        if self.output is None:
            raise ValueError("`alignment eval winrate` needs `--output` (a folder)")


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


class Said(NamedTuple):
    """What a model said, by a file of answers and the rejects beside it.

    Attributes:
        path: The file.
        answers: Prompt -> answers.
        unanswered: Prompts that it gave no answer to, or fewer than were asked for.
    """

    path: Path
    answers: Mapping[str, Sequence[str]]
    unanswered: Set[str]

    @property
    def prompts(self) -> Set[str]:
        """All that it was asked."""
        return self.answers.keys() | self.unanswered


def paired(one: Said, two: Said) -> list[tuple[str, str, str]]:
    """Prompt, answer and baseline's answer, matched by prompt and never by position.

    A prompt is left out if a side has fewer answers to it than the other, or none, and its rejects
    say so: that it was not answered in full is a finished outcome, and no fault of the files.

    Raises:
        UserError: The prompts differ, or a prompt has more answers on one side; or none is left.
    """
    for mine, theirs, side in ((one, two, "answers"), (two, one, "baseline")):
        alone = [prompt for prompt in mine.answers if prompt not in theirs.prompts]
        if alone:
            raise UserError(
                f"answers and baseline have different prompts: {len(alone)} of {len(mine.answers)} "
                f"stand in `{side}` alone, the first is `{shorten(alone[0])}`, which neither "
                f"{theirs.path} nor the rejects in {rejects_of(theirs.path)} have"
            )
    found = []
    for prompt in dict.fromkeys([*one.answers, *two.answers]):
        both = [said.answers.get(prompt, ()) for said in (one, two)]
        fewer = one if len(both[0]) < len(both[1]) else two
        if len(both[0]) == len(both[1]):
            found += [(prompt, *texts) for texts in zip(*both, strict=True)]
        elif prompt not in fewer.unanswered:
            raise UserError(
                f"the prompt `{shorten(prompt)}` has {len(both[0])} answers and {len(both[1])} "
                f"baseline answers, and {rejects_of(fewer.path)} does not say why; give as many of "
                "each"
            )
    if not found:
        files = ", ".join(str(rejects_of(said.path)) for said in (one, two))
        raise UserError(f"no prompt has an answer of both; see {files}")
    return found


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by a name for each: what their names differ in.

    Raises:
        UserError: A file is given twice.
    """
    if len({*paths}) < len(paths):
        raise UserError(f"a file is given twice among {', '.join(map(str, paths))}")
    stems = [path.name.partition(".")[0] for path in paths]
    alike = len({*stems}) < len(stems)
    return {str(path) if alike else stem: path for stem, path in zip(stems, paths, strict=True)}


def matches(options: Options) -> tuple[list[Row], list[Row]]:
    """What is to be judged, and what cannot be because a model gave no answer.

    Returns:
        Rows of `model`, `against`, `prompt`, `answer`, `baseline`; and for each pair of models
        that prompts are left out of, a row as `report` takes it.

    Raises:
        UserError: Files cannot be read, or answer different prompts.
    """
    others = [] if options.baseline is None else [options.baseline]
    files = named([*options.answers, *others])
    said = {n: Said(path, read_answers(path), unanswered(path)) for n, path in files.items()}
    for name, its in said.items():
        warn_of_repetition(name, [several[0] for several in its.answers.values()])
    names = list(files)
    if options.baseline is None:
        pairs = list(combinations(names, 2))
    else:
        pairs = [(name, names[-1]) for name in names[:-1]]
    columns = ("model", "against", "prompt", "answer", "baseline")
    rows: list[Row] = []
    lacking: list[Row] = []
    for one, two in pairs:
        both = (said[one], said[two])
        found = paired(*both)
        rows += [dict(zip(columns, (one, two, *texts), strict=True)) for texts in found]
        left = (both[0].prompts | both[1].prompts) - {prompt for prompt, _, _ in found}
        if left:
            rejects = [str(rejects_of(its.path)) for its in both if its.unanswered & left]
            named_pair = {"model": one, "against": two}
            lacking.append({**named_pair, "prompts": len(left), "rejects": rejects})
    return rows, lacking


def evaluate(options: Options) -> dict[str, Any]:
    """Judges all answers; writes a bundle with `verdicts.jsonl` and `results.json`.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: Files do not fit, the judge cannot be asked, or too few prompts are judged.
    """
    folder = Path(str(options.output))
    read_judge(options.judge, PREFERENCES)  # before models are asked
    if options.prompts is not None:
        options = answered(options, options.prompts, folder)
    rows, lacking = matches(options)
    verdicts = folder / "verdicts.jsonl"
    with open_ledger(verdicts, options) as ledger:
        judge = _judge(options, ledger)

        async def judged(row: Row) -> list[Row]:
            texts = (row["prompt"], row["answer"], row["baseline"])
            return [{**row, **(await compare(judge, *texts)).as_row()}]

        if not options.dry_run and options.part is None:
            for name in ("results.json", MANIFEST):
                (folder / name).unlink(missing_ok=True)
        sources = ((shorten(row["prompt"]), row) for row in rows)
        run_rows(options, [judge.llm], sources, judged, verdicts, total=len(rows))
    settings = {
        "seed": options.seed,
        "resamples": options.resamples,
        "length_tolerance": options.length_tolerance,
        "unanswered": lacking,
    }
    seal(folder, "winrate", judge.identity(), settings, [verdicts.name])
    results = from_bundle(folder, allow_missing=options.allow_missing)
    results["answers"] = ", ".join(map(str, options.answers))
    results["baseline_answers"] = None if options.baseline is None else str(options.baseline)
    text = json.dumps(results, indent=2)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    return results


def from_bundle(folder: Path, *, allow_missing: bool) -> dict[str, Any]:
    """The numbers of a run, from its folder alone.

    Raises:
        UserError: It is no whole bundle of this evaluator, or too few prompts are judged.
    """
    bundle = unseal(folder, "winrate")
    results = report(bundle.rows("verdicts.jsonl"), **bundle.settings)
    if not allow_missing:
        for pair in results["pairs"]:
            refuse_unjudged(pair, folder / "verdicts.jsonl", *pair["rejects"])
    return {**results, "judge": bundle.judge}


def main(argv: list[str]) -> None:
    """`alignment eval winrate`."""
    options = parse(Options, argv, "alignment eval winrate", __doc__)
    if options.bundle is not None:
        results = from_bundle(options.bundle, allow_missing=options.allow_missing)
    else:
        results = evaluate(options)
    told = [*words(results)]
    if options.output is not None:
        told.append(f"written to {options.output}")
    tell(results, options.json, told)


def words(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a report."""
    for pair in results["pairs"]:
        yield from _words_of(pair, several=len(results["pairs"]) > 1)
    for model, rated in results["ratings"].items():
        low, high = rated["rating_ci"]
        yield f"{model}: rating {rated['rating']:.0f}, 95% interval [{low:.0f}, {high:.0f}]"
    for test in results["paired_tests"]:
        one, two = test["models"]
        yield (
            f"{one} - {two} against {test['against']}: {test['difference']:+.3f}, "
            f"p = {test['p_value']:.4f}, corrected {test['p_value_holm']:.4f}"
        )


def _words_of(pair: Mapping[str, Any], *, several: bool) -> Iterator[str]:
    low, high = pair["win_rate_ci"]
    told = f"{pair['model']} against {pair['against']}: " if several else ""
    yield (
        f"{told}win rate {pair['win_rate']:.3f}, 95% interval [{low:.3f}, {high:.3f}] over "
        f"{pair['n_prompts']} prompts: {pair['wins']} wins, {pair['losses']} losses, "
        f"{pair['ties']} ties, {pair['unjudged']} unjudged"
        + (f" ({pair['unanswered']} without an answer)" if pair["unanswered"] else "")
        + f"; p = {pair['p_value']:.4f}"
        + (f", corrected {pair['p_value_holm']:.4f}" if several else "")
    )
    if matched := pair["length_matched"]:
        low, high = matched["win_rate_ci"]
        yield (
            f"at matched lengths {matched['win_rate']:.3f}, 95% interval [{low:.3f}, {high:.3f}] "
            f"over {matched['n_prompts']} prompts"
        )
    agreement = pair["position_consistency"]
    if agreement is not None:
        yield f"both orders agree in {agreement:.0%} of comparisons" + (
            ": this judge goes by the order of the answers, and its win rate says little"
            if agreement < FOLLOWS_ORDER
            else ""
        )


def _judge(options: Options, ledger: Ledger) -> PairJudge:
    judge = open_judge(options, ledger)
    if options.max_tokens is None or not isinstance(judge, Judge):
        return judge
    sampling = replace(judge.sampling, max_tokens=options.max_tokens)
    return replace(judge, sampling=sampling)


if __name__ == "__main__":
    run(main)
