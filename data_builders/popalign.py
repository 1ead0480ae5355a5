"""PopAlign: contrasts of six kinds, between prompts, between models and along a pipeline.

Paper: "PopAlign: Diversifying Contrasting Patterns for a More Comprehensive Alignment",
arXiv 2410.13785. A prompt gives one pair for each strategy, and all pairs are pooled. A judge,
where one is named, is shown a sample of each strategy's pairs and tells how often it prefers the
chosen side; `refine`, close to chance in the paper, is made only under its eyes.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import parse, run, say
from alignment.core.groups import Group
from alignment.core.rows import SUFFIXES, read_rows
from alignment.llm.engine import LLM
from alignment.llm.protocol import CallError
from alignment.llm.rows import PROMPT_COLUMNS, Named, Reject, Row, prompt_of
from data_builders.answers import AnswerFile
from data_builders.base import DataOptions, ModelAt, build_dataset
from data_builders.judging import PairJudgeOptions
from data_builders.pairs import SamplingOptions, pair_of
from data_builders.strategies import (
    SOURCES,
    STRATEGIES,
    Contrasts,
    Source,
    Strategy,
)

VERSION = "1"
"""Of the prompts and the parser together."""


@dataclass(kw_only=True)
class Options(PairJudgeOptions, SamplingOptions, DataOptions):
    """Options of `alignment build popalign`; the input's rows need `prompt`.

    `larger`, `smaller`, `higher` and `lower` are models, as `NAME` like `model` or as `NAME@URL` at
    addresses of their own, or files of their answers.
    """

    strategies: tuple[Strategy, ...] = field(
        default=("prefix", "demonstration", "elicitive"),
        metadata={"help": f"some of {', '.join(STRATEGIES)}"},
    )
    quotas: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "strategy -> most prompts, drawn by the seed; all unless it is named"},
    )
    wording: str = field(
        default="general",
        metadata={"help": "general, helpful_harmless, or a YAML file like those"},
    )
    model: str | None = field(
        default=None, metadata={"help": "model to ask: a name on the server, a folder or a hub id"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of the server; unset, the model runs here"}
    )
    larger: str | None = field(default=None, metadata={"help": "parameter_count: chosen side"})
    smaller: str | None = field(default=None, metadata={"help": "parameter_count: rejected side"})
    higher: str | None = field(default=None, metadata={"help": "leaderboard: chosen side"})
    lower: str | None = field(default=None, metadata={"help": "leaderboard: rejected side"})
    check: int = field(
        default=50, metadata={"help": "prompts of each strategy whose pair the judge is shown"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strategies or len({*self.strategies}) < len(self.strategies):
            told = f"it takes some of {', '.join(STRATEGIES)}, each once"
            raise ValueError(f"`strategies` is {' '.join(self.strategies) or 'empty'}; {told}")
        for name, quota in self.quotas.items():
            if name not in self.strategies or not isinstance(quota, int) or quota < 1:
                known = ", ".join(self.strategies)
                raise ValueError(
                    f"`quotas` maps strategies ({known}) to numbers above 0, got {name}: {quota}"
                )
        for name, strategy in self.needed().items():
            if getattr(self, name) is None:
                what = "a model, or a file of its answers" if strategy in SOURCES else "a model"
                raise ValueError(f"the strategy `{strategy}` needs `{name}`: {what}")
        if "refine" in self.strategies and (self.judge_at is None or self.check < 1):
            raise ValueError(
                "`refine` is close to chance in the paper, so it needs a contrast check: name "
                "`judge_model` and a `check` above 0, or leave it out"
            )

    def needed(self) -> dict[str, Strategy]:
        """The models, or files of answers, that the strategies take, each with one that does."""
        return {
            name: strategy
            for strategy in self.strategies
            for name in SOURCES.get(strategy, ("model",))
        }


class Task(dict[str, Any]):
    """An input row with what is to be made of it.

    Args:
        row: The input row.
        strategies: Those that the row takes part in.
        checked: Those whose pair the judge is shown.
    """

    def __init__(self, row: Row, strategies: list[Strategy], checked: list[Strategy]) -> None:
        super().__init__(row)
        self.strategies = strategies
        self.checked = checked


def tasks(options: Options) -> Iterator[Named]:
    """The input's rows, each with its strategies.

    Raises:
        UserError: The input cannot be read.
    """
    count = sum(1 for _ in read_rows(options.input))
    taking: dict[Strategy, set[int]] = {}
    checked: dict[Strategy, set[int]] = {}
    for strategy in options.strategies:
        rng = random.Random(f"{options.seed}\0{strategy}")
        quota = min(options.quotas.get(strategy, count), count)
        drawn = rng.sample(range(count), quota)
        taking[strategy] = set(drawn)
        checked[strategy] = set(drawn[: options.check] if options.judge_at else ())
    for index, (name, row) in enumerate(read_rows(options.input)):
        in_these = [strategy for strategy in options.strategies if index in taking[strategy]]
        yield name, Task(row, in_these, [s for s in in_these if index in checked[s]])


def builder(
    options: Options, roles: list[str], files: Mapping[str, AnswerFile]
) -> Callable[..., Awaitable[list[Group | Reject]]]:
    """The function that makes the pairs of a `Task`, ready for `build_dataset`.

    Args:
        options: How to make them.
        roles: What the models are for that it takes after the row, in their order.
        files: Files of answers in the place of models, by role.

    Raises:
        UserError: A prompt file cannot be used.
    """
    contrasts, compare = Contrasts(options.wording, options.sampling), options.comparison()

    async def build(task: Task, *llms: LLM) -> list[Group | Reject]:
        if not task.strategies:
            raise Reject("over_quota", "no strategy has room for this prompt")
        prompt = prompt_of(task)
        models = dict(zip(roles, llms, strict=True))
        sources: dict[str, Source] = {**models, **files}

        async def pair(strategy: Strategy) -> Group | Reject:
            try:
                chosen, rejected = await contrasts.sides(strategy, prompt, sources)
                meta = {
                    "builder": "popalign",
                    "version": VERSION,
                    "strategy": strategy,
                    "wording": options.wording,
                    "sampling": options.sampling.settings(),
                }
                made = pair_of(prompt, chosen, rejected, meta)
                if strategy not in task.checked:
                    return made
                verdicts = await compare(models["judge"], prompt, chosen.text, rejected.text)
                return replace(made, meta={**made.meta, "contrast_check": verdicts.as_row()})
            except CallError as error:
                return Reject(error.outcome, str(error), strategy=strategy)
            except Reject as error:
                return Reject(error.reason, str(error), strategy=strategy, **error.details)

        return list(await asyncio.gather(*map(pair, task.strategies)))

    return build


class Check(NamedTuple):
    """What a judge said of a sample of a strategy's pairs.

    Attributes:
        pairs: Pairs that were made.
        judged: Pairs of the sample with verdicts that can be read.
        unjudged: Pairs of the sample without.
        accuracy: Mean preference for the chosen side over those judged, in [0, 1], both orders; a
            tie counts one half. None where none was judged.
    """

    pairs: int
    judged: int
    unjudged: int
    accuracy: float | None


def contrast_check(path: Path) -> dict[str, Check]:
    """How often the judge prefers the chosen side, by strategy, from the pairs of a file."""
    found: dict[str, list[Row]] = {strategy: [] for strategy in STRATEGIES}
    for _, row in read_rows(path):
        found[row["meta"]["strategy"]].append(row["meta"])
    return {strategy: _checked(metas) for strategy, metas in found.items() if metas}


def _checked(metas: list[Row]) -> Check:
    """What the judge said of a strategy's pairs, from their `meta`."""
    scores = [meta["contrast_check"]["score"] for meta in metas if meta.get("contrast_check")]
    read = [score for score in scores if score is not None]
    accuracy = sum(read) / len(read) if read else None
    return Check(len(metas), len(read), len(scores) - len(read), accuracy)


def main(argv: list[str]) -> None:
    """`alignment build popalign`."""
    options = parse(Options, argv, "alignment build popalign", __doc__)
    models: dict[str, ModelAt] = {}
    files: dict[str, AnswerFile] = {}
    for name in options.needed():
        source = str(getattr(options, name))
        if name == "model":
            models["generator"] = ModelAt(source, options.base_url)
        elif source.endswith(SUFFIXES):
            files[name] = AnswerFile(source)
        else:
            models[name] = ModelAt.of(source, options.base_url)
    if options.judge_at is not None:
        models["judge"] = options.judge_at
    build_dataset(
        *(options, builder(options, list(models), files)),
        models=models,
        rows=tasks(options),
        needs=(PROMPT_COLUMNS,),
        later="second turns of `refine` and the judge's verdicts",
    )
    report_checks(options.output)


def report_checks(output: Path) -> None:
    """Says what each strategy gave and how often the judge agrees, and adds it to the report."""
    checks = contrast_check(output)
    for strategy, check in checks.items():
        told = f"{strategy}: {check.pairs} pair{'s' if check.pairs > 1 else ''}"
        if check.accuracy is not None:
            told += f"; the judge prefers chosen in {check.accuracy:.1%} of {check.judged} checked"
        if check.unjudged:
            told += f", {check.unjudged} could not be read"
        say(told)
    report = Path(f"{output}.report.json")
    summary = json.loads(report.read_text(encoding="utf-8"))
    summary["contrast_check"] = {strategy: check._asdict() for strategy, check in checks.items()}
    report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
