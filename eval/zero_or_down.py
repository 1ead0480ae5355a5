"""Whether pairs ask for APO-zero or APO-down: are chosen answers better than the model's own?

Paper: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
in Alignment", arXiv 2408.06266. Where the chosen answers beat fresh samples of the model to be
trained, APO-zero raises them; where they lose, APO-down lowers both sides. The choice stays with
the user: the wrong one does harm.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from alignment.cli import UserError, check_counts, parse, run, say
from alignment.core.groups import CHOSEN, Content, RowError, group_from_row, text_of
from alignment.core.rows import read_rows
from alignment.llm.connect import connect, open_ledger, run_rows
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Outcome, Request, Sampling
from alignment.llm.rows import Reject, Row
from eval.answering import rejects_of
from eval.judge import compare
from eval.judge_files import JudgeOptions, open_judge
from eval.stats import check_seed, refuse_unjudged, summarise


@dataclass(kw_only=True)
class Options(JudgeOptions):
    """Options of `alignment eval zero_or_down`."""

    pairs: Path = field(metadata={"help": "file of pairs, in any format that training reads"})
    output: Path = field(metadata={"help": "folder for results.json and verdicts.jsonl"})
    model: str = field(metadata={"help": "the model to be trained"})
    base_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    format: Literal["chat", "complete"] = field(
        default="chat", metadata={"help": "whether text prompts are put as a user's message"}
    )
    temperature: float = field(default=1.0, metadata={"help": "of the fresh samples"})
    max_tokens: int = field(default=512, metadata={"help": "longest fresh sample"})
    prompts: int = field(default=200, metadata={"help": "pairs to look at, drawn by the seed"})
    seed: int = field(default=0, metadata={"help": "seed of the draw, the samples, the bootstrap"})
    allow_missing: bool = field(
        default=False, metadata={"help": "report although many samples or verdicts are missing"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "prompts")
        check_seed(self)


def diagnose(options: Options) -> dict[str, Any]:
    """Judges chosen answers against fresh samples and writes `verdicts.jsonl`, `results.json`.

    Returns:
        What `results.json` holds: the numbers of a win rate of the chosen answers; `advice`,
        `zero` where it is above one half and `down` elsewhere; and `certain`, whether its interval
        lies on one side of one half.

    Raises:
        UserError: The pairs cannot be read, a model cannot be asked, or samples or verdicts are
            missing.
    """
    pairs = [(name, row) for name, row in read_rows(options.pairs) if row.get("chosen")]
    if not pairs:
        raise UserError(f"{options.pairs}: no row has a `chosen` answer")
    if len(pairs) > options.prompts:
        pairs = random.Random(options.seed).sample(pairs, options.prompts)
    verdicts = options.output / "verdicts.jsonl"
    sampling = Sampling(options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    with open_ledger(verdicts, options) as ledger:
        llm = connect(options.model, options.base_url, ledger, options)
        judge = open_judge(options, ledger)

        async def judged(row: Row) -> list[Row]:
            prompt, chosen = _chosen(row)
            complete = options.format == "complete" and isinstance(prompt, str)
            request = (
                Request("complete", prompt, sampling=sampling)
                if complete
                else Request("chat", as_messages(prompt), sampling=sampling)
            )
            fresh = await llm.ask(request, keep_truncated=True)
            texts = (as_text(prompt), chosen, fresh.text)
            shown = dict(zip(("prompt", "answer", "baseline"), texts, strict=True))
            return [{**shown, **(await compare(judge, *texts)).as_row()}]

        if not options.dry_run:
            (options.output / "results.json").unlink(missing_ok=True)
        report = run_rows(
            *(options, [llm, judge.llm], pairs, judged, verdicts),
            total=len(pairs),
            later="two verdicts on each sample",
        )
        report.refuse_empty(options.pairs)
    unanswered = sum(report.dropped[outcome] for outcome in get_args(Outcome))
    rows = (row for _, row in read_rows(verdicts))
    results = summarise(rows, options.seed, unanswered=unanswered)
    if not options.allow_missing:
        refuse_unjudged(results, verdicts, *([rejects_of(verdicts)] if unanswered else []))
    low, high = results["win_rate_ci"]
    results["advice"] = "zero" if results["win_rate"] > 0.5 else "down"
    results["certain"] = not low <= 0.5 <= high
    results |= {"model": llm.source, "sampling": sampling.settings(), "judge": judge.identity()}
    text = json.dumps(results, indent=2)
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    return results


def main(argv: list[str]) -> None:
    """`alignment eval zero_or_down`."""
    options = parse(Options, argv, "alignment eval zero_or_down", __doc__)
    results = diagnose(options)
    low, high = results["win_rate_ci"]
    say(
        f"chosen answers against fresh samples of {options.model}: win rate "
        f"{results['win_rate']:.3f}, 95% interval [{low:.3f}, {high:.3f}] over "
        f"{results['n_prompts']} prompts"
    )
    doubt = "" if results["certain"] else "; the interval holds 0.5, so look at more pairs first"
    say(f"advice: objective `apo` with `variant: {results['advice']}`{doubt}; the choice is yours")


def _chosen(row: Row) -> tuple[Content, str]:
    """The prompt and the chosen answer of a pair.

    Raises:
        Reject: The row is no pair that training would read.
    """
    if not row.get("rejected"):  # only the chosen side is judged
        row = {"prompt": row.get("prompt"), "completion": row["chosen"]}
    try:
        group = group_from_row(row)
    except RowError as error:
        raise Reject(error.reason, str(error)) from None
    chosen = next(response for response in group.responses if response.role == CHOSEN)
    return group.prompt, text_of(chosen.content)


if __name__ == "__main__":
    run(main)
