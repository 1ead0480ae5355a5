"""Teacher-student pairs: for each prompt one answer of the teacher and one of the student.

Paper: "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", arXiv 2503.07067.
`--model` is the student as it is now; each epoch draws anew (`--epoch`). Answers made elsewhere are
given as files. What another model than the teacher wrote is refused: the paper finds text of a
third model, also of a stronger one, and mixtures of both sides worse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignment.cli import parse, run
from alignment.core.groups import Group
from alignment.llm.engine import LLM
from alignment.llm.protocol import Prompt
from alignment.llm.rows import PROMPT_COLUMNS, Reject, Row, prompt_of
from data_builders.answers import AnswerFile
from data_builders.base import Build, BuildOptions, ModelAt, build_dataset
from data_builders.pairs import DrawOptions, Side, draw, pair_of

VERSION = "1"
"""Of the way in which pairs are made."""

SIDES = {"teacher": "chosen", "student": "rejected"}


@dataclass(kw_only=True)
class Options(BuildOptions, DrawOptions):
    """Options of `alignment build distill_pairs`."""

    teacher_model: str = field(
        metadata={"help": "the teacher: asked, or the writer of `teacher_answers`"}
    )
    teacher_url: str | None = field(
        default=None, metadata={"help": "address of the teacher's server; unset, it runs here"}
    )
    teacher_answers: Path | None = field(
        default=None, metadata={"help": "file of the teacher's answers, in the place of asking it"}
    )
    student_answers: Path | None = field(
        default=None, metadata={"help": "file of the student's answers, in the place of asking it"}
    )
    epoch: int = field(default=0, metadata={"help": "which draw of both answers this is"})
    temperature: float = field(default=0.8, metadata={"help": "of both; 0 is greedy"})
    top_p: float | None = field(default=0.95, metadata={"help": "probability mass to draw from"})
    max_tokens: int = field(default=1024, metadata={"help": "longest answer, tokens"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epoch < 0:
            raise ValueError(f"`epoch` is {self.epoch}; it counts from 0")
        if (self.model, self.base_url) == (self.teacher_model, self.teacher_url):
            raise ValueError(
                f"teacher and student are both {self.model}; a pair needs two models, so name "
                "another `--teacher-model`"
            )

    @property
    def models(self) -> dict[str, ModelAt]:
        """Teacher and student."""
        return {
            "teacher": ModelAt(self.teacher_model, self.teacher_url),
            "student": self.generator,
        }

    @property
    def files(self) -> dict[str, Path]:
        """The files of answers that were made elsewhere."""
        files = {"teacher": self.teacher_answers, "student": self.student_answers}
        return {side: path for side, path in files.items() if path is not None}


def builder(options: Options, files: Mapping[str, AnswerFile]) -> Build:
    """The function that makes a pair of a prompt, ready for `build_dataset`.

    Args:
        options: How to draw.
        files: Side -> the answers that were made elsewhere, for the sides that are not asked.
    """
    asked = [side for side in SIDES if side not in files]
    meta = {
        "builder": "distill_pairs",
        "version": VERSION,
        "epoch": options.epoch,
        "sampling": {side: options.sampling.settings() for side in asked},
    }

    async def build(row: Row, *models: LLM) -> Group:
        prompt = prompt_of(row)
        # Before any call: a prompt without its match is not asked about.
        sides = {side: _given(file, prompt, side, options) for side, file in files.items()}
        drawn = await asyncio.gather(
            *(draw(llm, prompt, options, sample=options.epoch) for llm in models)
        )
        for side, llm, reply in zip(asked, models, drawn, strict=True):
            sides[side] = Side(reply.text, llm.model, on_policy=side == "student")
        return pair_of(prompt, sides["teacher"], sides["student"], meta)

    return build


def main(argv: list[str]) -> None:
    """`alignment build distill_pairs`."""
    options = parse(Options, argv, "alignment build distill_pairs", __doc__)
    files = {side: AnswerFile(path) for side, path in options.files.items()}
    build_dataset(
        options,
        builder(options, files),
        models={side: model for side, model in options.models.items() if side not in files},
        needs=[PROMPT_COLUMNS],
        counts=lambda: {"answers_without_a_prompt": {s: f.unused for s, f in files.items()}},
    )


def _given(file: AnswerFile, prompt: Prompt, side: str, options: Options) -> Side:
    """A side that was made elsewhere.

    Raises:
        Reject: `third_model` where another model wrote it, else as for `AnswerFile.answer`.
    """
    answer, model = file.answer(prompt), options.models[side]
    if answer.model not in (None, model.name, _short(model.name)):
        raise Reject(
            "third_model",
            f"{answer.model} wrote this answer in {file.path}, but the {side} is {model.name}",
        )
    return answer._replace(model=answer.model or model.name, on_policy=side == "student")


def _short(name: str) -> str:
    """What a model in this process is called in records: of a folder the last part."""
    return Path(name.removeprefix("vllm:")).name


if __name__ == "__main__":
    run(main)
