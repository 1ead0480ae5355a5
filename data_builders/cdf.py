"""Constructive feedback: an answer against its revision under a critique, a refinement, or a rival.

Paper: "Constructive Large Language Models Alignment with Diverse Feedback", arXiv 2310.06450. With
`--split`, as there, prompts are ranked by the perplexity of the model's own answer, and of three
equal parts the easy get critiques, the medium refinements, the hard preferences; the paper does not
compare this with every feedback on every prompt, which is the default here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from alignment.cli import parse, run
from alignment.core.groups import Content, Group
from alignment.core.rows import read_rows
from alignment.llm.engine import LLM
from alignment.llm.prompts import Template, as_messages, as_text
from alignment.llm.protocol import CallError, Message, Prompt, Reply, Sampling
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, prompt_of
from data_builders.base import PROMPTS, Build, BuildOptions, JudgeOptions, ModelAt, build_dataset
from data_builders.markers import split_reply
from data_builders.pairs import DrawOptions, Side, draw, pair_of
from data_builders.survey import Survey, unsurveyed
from eval.judge import compare, pairwise_judge

Feedback = Literal["critique", "refinement", "preference"]
FEEDBACKS: tuple[Feedback, ...] = get_args(Feedback)
"""From easy to hard."""

VERSION = "1"
"""Of the prompts and the parser together."""

_ANSWER = r"(?:revised|improved|better|new)[ _-](?:answer|response)"
_REASONING = r"reasoning"


@dataclass(kw_only=True)
class Options(BuildOptions, DrawOptions, JudgeOptions):
    """Options of `alignment build cdf`."""

    feedback: tuple[Feedback, ...] = field(
        default=FEEDBACKS, metadata={"help": "which feedback every prompt gets, one pair for each"}
    )
    split: bool = field(
        default=False, metadata={"help": "one feedback for each prompt, by its difficulty"}
    )
    second_model: str | None = field(
        default=None, metadata={"help": "whose answer is the rival, for preferences"}
    )
    second_url: str | None = field(
        default=None, metadata={"help": "address of its server; unset, it runs here"}
    )
    judge_prompt: Path | None = field(
        default=None, metadata={"help": "prompt file with the fields prompt, first, second, fence"}
    )
    judge_max_tokens: int = field(default=2048, metadata={"help": "longest reply of the judge"})
    temperature: float = field(default=0.0, metadata={"help": "of the answers; 0 is greedy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.feedback:
            raise ValueError(f"`feedback` names none; known: {', '.join(FEEDBACKS)}")
        if self.split and set(self.feedback) != set(FEEDBACKS):
            raise ValueError("`split` gives each third of the prompts one of all three feedbacks")
        if "preference" in self.feedback and self.second_model is None:
            raise ValueError("`feedback: preference` needs the rival's model: `second_model`")
        if self.judge_model is None:
            raise ValueError("feedback needs who gives it: name a model by `judge_model`")


class Difficulty(NamedTuple):
    """How hard a prompt is for a model.

    Attributes:
        perplexity: Of the model's own answer, at least 1.
        prompt: The prompt's text.
    """

    perplexity: float
    prompt: str


def thirds(found: Sequence[Difficulty]) -> dict[str, Feedback]:
    """The feedback of each prompt: three equal parts, from the lowest perplexity to the highest."""
    ranked = sorted(set(found))
    return {
        difficulty.prompt: FEEDBACKS[3 * rank // len(ranked)]
        for rank, difficulty in enumerate(ranked)
    }


async def perplexity(llm: LLM, prompt: Prompt, answer: str) -> float:
    """Exp of the mean negative log-prob of an answer's tokens.

    Args:
        llm: A model that offers `score`.
        prompt: Text that the answer goes on with, or messages.
        answer: The answer.

    Raises:
        CallError: The answer could not be scored.
        UserError: The model scores no such prompt: a server scores texts alone.
    """
    (logps,) = await llm.score(prompt, [answer])
    return math.exp(-fmean(logps))


def builder(options: Options) -> Build:
    """The function that makes a pair of a prompt for each feedback, ready for `build_dataset`.

    Raises:
        UserError: A prompt file cannot be used.
    """
    giving = _Giving(options)
    survey: Survey[Difficulty, dict[str, Feedback]] = Survey(
        lambda: read_rows(options.input), thirds, options
    )

    async def answered(prompt: Prompt, llm: LLM) -> Reply:
        reply = await draw(llm, prompt, options)
        if not reply.text.strip():
            raise Reject("empty", "the model said nothing")
        return reply

    async def difficulty(row: Row, llm: LLM) -> Difficulty:
        prompt = prompt_of(row)
        answer = await answered(prompt, llm)
        plain = options.format == "complete" and isinstance(prompt, str)
        asked = prompt if plain else as_messages(prompt)
        return Difficulty(await perplexity(llm, asked, answer.text), as_text(prompt))

    async def build(row: Row, *models: LLM) -> list[Group | Reject]:
        prompt, feedbacks, meta = prompt_of(row), options.feedback, {}
        if options.split:
            found = await difficulty(row, models[0])
            parts = await survey.conclusion(lambda row: difficulty(row, models[0]))
            if found.prompt not in parts:
                raise unsurveyed()
            feedbacks, meta = (parts[found.prompt],), {"perplexity": found.perplexity}
        reply = await answered(prompt, models[0])
        answer = Side(reply.text, models[0].model, on_policy=True)
        made = (giving.pair(feedback, prompt, answer, meta, *models) for feedback in feedbacks)
        return list(await asyncio.gather(*made))

    return build


class _Giving:
    """What makes a pair of an answer and a feedback."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.critique = Template(PROMPTS / "cdf_critique.txt", {"prompt", "response"})
        self.revise = Template(PROMPTS / "cdf_revise.txt", {"prompt", "response", "critique"})
        self.refine = Template(PROMPTS / "cdf_refine.txt", {"prompt", "response"})
        self.sampling = Sampling(temperature=0.0, max_tokens=options.judge_max_tokens)
        self.ways: dict[Feedback, Callable[..., Awaitable[tuple[Side, Side, dict[str, Any]]]]] = {
            "critique": self._revised,
            "refinement": self._refined,
            "preference": self._preferred,
        }

    async def pair(
        self, feedback: Feedback, prompt: Content, answer: Side, meta: dict[str, Any], *models: LLM
    ) -> Group | Reject:
        """A pair, or why there is none: another feedback may still give one."""
        told = {
            "builder": "cdf",
            "version": VERSION,
            "feedback": feedback,
            **meta,
            "sampling": {
                "answer": self.options.sampling.settings(),
                "feedback": self.sampling.settings(),
            },
        }
        try:
            chosen, rejected, more = await self.ways[feedback](prompt, answer, *models)
            return pair_of(prompt, chosen, rejected, {**told, **more})
        except CallError as error:
            return Reject(error.outcome, str(error))
        except Reject as error:
            return error

    async def _revised(
        self, prompt: Content, answer: Side, *models: LLM
    ) -> tuple[Side, Side, dict[str, Any]]:
        """The answer as the model itself revises it under a critique."""
        model, judge = models[:2]
        shown = {"prompt": as_text(prompt), "response": answer.text}
        critique = await judge.chat(self.critique.user_message(**shown), self.sampling)
        messages = self.revise.user_message(**shown, critique=critique.text)
        revised = await self._written(model, messages, self.options.sampling)
        return revised, answer, {"critique": critique.text, "prompt_file": self.revise.digest}

    async def _refined(
        self, prompt: Content, answer: Side, *models: LLM
    ) -> tuple[Side, Side, dict[str, Any]]:
        """The answer as the judge writes it better."""
        messages = self.refine.user_message(prompt=as_text(prompt), response=answer.text)
        refined = await self._written(models[1], messages, self.sampling)
        return refined, answer, {"prompt_file": self.refine.digest}

    async def _preferred(
        self, prompt: Content, answer: Side, *models: LLM
    ) -> tuple[Side, Side, dict[str, Any]]:
        """The better of the answer and the second model's, in both orders."""
        _, llm, second = models
        reply = await draw(second, prompt, self.options)
        rival = Side(reply.text, second.model, on_policy=False)
        judge = pairwise_judge(llm, self.options.judge_prompt, self.sampling)
        verdict = await compare(judge, as_text(prompt), answer.text, rival.text)
        votes = {"votes": verdict.as_row()["votes"]}
        if verdict.score is None:
            raise Reject("unjudged", "a verdict cannot be read", **votes)
        if verdict.score == 0.5:
            raise Reject("tie", "neither answer is preferred in both orders", **votes)
        chosen, rejected = (answer, rival) if verdict.score > 0.5 else (rival, answer)
        return chosen, rejected, votes

    async def _written(self, llm: LLM, messages: list[Message], sampling: Sampling) -> Side:
        """A side that a model writes on request."""
        reply = await llm.chat(messages, sampling)
        answer = split_reply(reply.text, _ANSWER, _REASONING, "## Revised answer").answer
        return Side(answer, llm.model, on_policy=False, generation_prompt=messages)


def main(argv: list[str]) -> None:
    """`alignment build cdf`."""
    options = parse(Options, argv, "alignment build cdf", __doc__)
    models = {"generator": options.generator}
    if options.judge is not None:
        models["judge"] = options.judge
    if options.second_model is not None:
        models["second"] = ModelAt(options.second_model, options.second_url)
    build_dataset(
        options,
        builder(options),
        models=models,
        needs=[PROMPT_COLUMNS],
        later="feedback on answers",
    )


if __name__ == "__main__":
    run(main)
