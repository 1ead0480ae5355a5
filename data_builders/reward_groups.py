"""Scored groups: several answers to a prompt, rated by a judge in one call for each aspect.

Papers: "UltraFeedback: Boosting Language Models with Scaled AI Feedback", arXiv 2310.01377, and
"CodeUltraFeedback", arXiv 2403.09032. Rows that hold `responses` are rated as they are, and with
`rewards` they need no judge; other prompts are answered first, under principles that make the
answers differ. `--pairs` makes a pair of each group.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignment.cli import UserError, load_yaml, parse, run, unknown
from alignment.core.groups import (
    Content,
    Group,
    PairRule,
    Response,
    RowError,
    binarise,
    group_from_row,
    text_of,
)
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import Message
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, prompt_of
from data_builders.base import Build, DataOptions, JudgeOptions, ModelAt, build_dataset
from data_builders.pairs import DrawOptions, draw, like
from data_builders.ratings import Rater

VERSION = "1"
"""Of the prompt, the aspects and the parser together."""

ASPECTS = Path(__file__).parent / "aspects"
GROUP_COLUMNS = ("responses", "completions")


@dataclass(kw_only=True)
class Options(DataOptions, DrawOptions, JudgeOptions):
    """Options of `alignment build reward_groups`."""

    model: tuple[str, ...] = field(
        default=(),
        metadata={"help": "models that answer prompts; NAME or NAME@URL, several for variety"},
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of those without one; unset, they run here"}
    )
    answers: int = field(default=4, metadata={"help": "answers to each prompt"})
    aspects: Path = field(
        default=Path("ultrafeedback"),
        metadata={
            "help": "file of aspects with their principles; `ultrafeedback` and `code` exist"
        },
    )
    principles: bool = field(
        default=True, metadata={"help": "draw a principle for each answer, as a system message"}
    )
    judge_prompt: Path | None = field(
        default=None,
        metadata={"help": "prompt file with the fields prompt, aspect, answers, fence"},
    )
    judge_max_tokens: int = field(default=1024, metadata={"help": "longest reply of the judge"})
    pairs: Literal["best_worst", "best_random"] | None = field(
        default=None, metadata={"help": "write a pair of each group instead of the group"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answers < 2:
            raise ValueError(f"`answers` is {self.answers}; a group has at least 2")
        if self.model and self.judge_model is None:
            raise ValueError("`model` answers prompts to be rated: name the judge by `judge_model`")
        if self.principles and self.model and self.format == "complete":
            raise ValueError(
                "`format: complete` has no system message to hold a principle; pass "
                "`--principles false`"
            )


class Aspect(NamedTuple):
    """What answers are rated by.

    Attributes:
        name: A word.
        about: What it means, for the judge.
        principles: System messages that ask for it.
    """

    name: str
    about: str
    principles: tuple[str, ...]


class Aspects(NamedTuple):
    """Several aspects.

    Attributes:
        all: The aspects.
        drawn: Whether one is drawn for each answer, and all rate it, or one for each prompt.
    """

    all: tuple[Aspect, ...]
    drawn: Literal["answer", "prompt"]


class Plan(NamedTuple):
    """How one answer is made.

    Attributes:
        model: Index of the model.
        sample: Which of its answers this is.
        principle: The system message, None for none.
    """

    model: int
    sample: int
    principle: str | None


def read_aspects(path: Path) -> Aspects:
    """Reads a file of aspects.

    Args:
        path: The file, or the name of one that comes along.

    Raises:
        UserError: There is no such file, or it is none of aspects.
    """
    if not path.suffix:
        known = [file.stem for file in ASPECTS.glob("*.yaml")]
        if str(path) not in known:
            raise unknown("aspects", str(path), known)
        path = ASPECTS / f"{path}.yaml"
    loaded = load_yaml(path)
    drawn = loaded.get("drawn", "answer")
    try:
        aspects = tuple(
            Aspect(name, str(told["about"]), tuple(map(str, told["principles"])))
            for name, told in loaded["aspects"].items()
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected `aspects`, each with `about` and `principles` ({error!r})"
        ) from None
    if drawn not in ("answer", "prompt") or not aspects or not all(a.principles for a in aspects):
        raise UserError(
            f"{path}: expected `drawn: answer` or `drawn: prompt`, and principles in every aspect"
        )
    return Aspects(aspects, drawn)


def planned(aspects: Sequence[Aspect], models: int, answers: int, rng: random.Random) -> list[Plan]:
    """Who answers, and under which principle.

    Of more models than answers some are drawn; of fewer each answers in turn.
    """
    chosen = rng.sample(range(models), min(models, answers))
    return [
        Plan(
            chosen[index % len(chosen)],
            index // len(chosen),
            rng.choice(rng.choice(aspects).principles),
        )
        for index in range(answers)
    ]


def builder(options: Options, ties: Counter[str]) -> Build:
    """The function that makes a scored group of a row, or a pair, ready for `build_dataset`.

    Args:
        options: How to answer, rate and pair.
        ties: Counts the ties that the seed has broken.

    Raises:
        UserError: The prompt file or the aspects cannot be used.
    """
    aspects = read_aspects(options.aspects)
    rater = Rater.of(options.judge_prompt, options.judge_max_tokens, options.seed)

    async def build(row: Row, *models: LLM) -> Group:
        given = _given(row) if any(name in row for name in GROUP_COLUMNS) else None
        prompt = prompt_of(row) if given is None else given.prompt
        rng = random.Random(f"{options.seed}\0{as_text(prompt)}")
        by = aspects.all if aspects.drawn == "answer" else (rng.choice(aspects.all),)
        writers = models[1:] if options.judge_model else models
        group = given or await _answered(prompt, by, writers, rng, options)
        if options.judge_model:
            group = await _rated(group, by, models[0], rater)
        if any(response.reward is None for response in group.responses):
            raise Reject("no_reward", "a response has no reward; name a judge by `--judge-model`")
        return _paired(group, options.pairs, options.seed, ties) if options.pairs else group

    return build


def main(argv: list[str]) -> None:
    """`alignment build reward_groups`."""
    options = parse(Options, argv, "alignment build reward_groups", __doc__)
    models = {}
    if options.judge is not None:
        models["judge"] = options.judge
    for number, name in enumerate(options.model, 1):
        models[f"generator {number}"] = ModelAt.of(name, options.base_url)
    ties: Counter[str] = Counter()
    build_dataset(
        options,
        builder(options, ties),
        models=models,
        needs=[PROMPT_COLUMNS, *([] if options.model else [GROUP_COLUMNS])],
        later="ratings of answers" if options.model else None,
        counts=lambda: {"ties_broken_by_the_seed": ties},
    )


def _given(row: Row) -> Group:
    """The group that a row holds."""
    try:
        group = group_from_row(row)
    except RowError as error:
        raise Reject(error.reason, str(error)) from None
    # A group that this builder has written before goes on saying where its answers come from.
    told = group.meta.get("on_policy") if group.meta.get("builder") == "reward_groups" else None
    on_policy = isinstance(told, list) and bool(told) and all(told)
    return replace(group, meta={**group.meta, **_meta(len(group.responses), on_policy=on_policy)})


def _meta(answers: int, *, on_policy: bool, **more: Any) -> dict[str, Any]:
    return {
        "builder": "reward_groups",
        "version": VERSION,
        "on_policy": [on_policy] * answers,
        **more,
    }


async def _answered(
    prompt: Content,
    aspects: Sequence[Aspect],
    writers: Sequence[LLM],
    rng: random.Random,
    options: Options,
) -> Group:
    """A group of new answers."""
    if not writers:
        raise Reject("no_response", "the row has no `responses`; `--model` answers its prompt")
    plans = planned(aspects, len(writers), options.answers, rng)
    if not options.principles:
        plans = [plan._replace(principle=None) for plan in plans]
    asked = [_under(plan.principle, prompt) for plan in plans]
    replies = await asyncio.gather(
        *(
            draw(writers[plan.model], messages, options, plan.sample)
            for plan, messages in zip(plans, asked, strict=True)
        )
    )
    responses = tuple(
        Response(like(prompt, reply.text), model=writers[plan.model].model)
        for plan, reply in zip(plans, replies, strict=True)
    )
    if len({tuple(reply.text.split()) for reply in replies}) == 1:
        raise Reject("identical", f"all {len(replies)} answers are the same text")
    meta = _meta(
        len(plans),
        on_policy=not options.principles,
        sampling=options.sampling.settings(),
        generation_prompt=asked,
    )
    return Group(prompt, responses, meta)


def _under(principle: str | None, prompt: Content) -> Content:
    """A prompt with a principle as its system message, or before the one that it has."""
    if principle is None:
        return prompt
    messages: list[Message] = [*as_messages(prompt)]
    if messages[0]["role"] == "system":
        principle, messages = f"{principle}\n\n{messages[0]['content']}", messages[1:]
    return [{"role": "system", "content": principle}, *messages]


async def _rated(group: Group, aspects: Sequence[Aspect], judge: LLM, rater: Rater) -> Group:
    """The rated responses of a group, the mean rating of each as its reward.

    `meta.judged` holds all ratings, by index of the answer; an answer to which no aspect applies
    leaves the group.

    Raises:
        Reject: `unrated` where fewer than two are left, else as for `Rater.rate`.
    """
    texts = [text_of(response.content) for response in group.responses]
    said = await asyncio.gather(
        *(rater.rate(judge, group.prompt, texts, aspect.about) for aspect in aspects)
    )
    rewards = [_mean([one.blocks[index].rating for one in said]) for index in range(len(texts))]
    kept = [index for index, reward in enumerate(rewards) if reward is not None]
    if len(kept) < 2:
        raise Reject("unrated", f"the judge rated {len(kept)} of {len(texts)} answers")
    ratings = {a.name: one.as_columns() for a, one in zip(aspects, said, strict=True)}
    judged = {"model": judge.model, **rater.settings(), "kept": kept, "aspects": ratings}
    return replace(
        group,
        responses=tuple(replace(group.responses[i], reward=rewards[i]) for i in kept),
        meta={**group.meta, "judged": judged},
    )


def _mean(ratings: Sequence[int | None]) -> float | None:
    """The mean of the ratings that there are; N/A counts neither for an answer nor against it."""
    given = [rating for rating in ratings if rating is not None]
    return sum(given) / len(given) if given else None


def _paired(group: Group, rule: PairRule, seed: int, ties: Counter[str]) -> Group:
    """The pair of a group by a rule.

    Raises:
        Reject: There is no gap, or best and worst are the same text.
    """
    try:
        pair, broken = binarise(group, seed, rule)
    except RowError as error:
        raise Reject(error.reason, str(error)) from None
    ties.update(broken)
    chosen, rejected = pair.responses
    meta = {
        **pair.meta,
        "pair_rule": rule,
        "seed": seed,
        "ties": list(broken),
        "models": {"chosen": chosen.model, "rejected": rejected.model},
        "on_policy": dict.fromkeys(("chosen", "rejected"), pair.meta["on_policy"][0]),
    }
    return replace(pair, meta=meta)


if __name__ == "__main__":
    run(main)
