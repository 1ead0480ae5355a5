"""Tune a pair of soft prompts, one for what is wanted and one for its opposite.

    alignment soft_prompts --model FOLDER --input pairs.jsonl --benign answers.jsonl --output FOLDER
    alignment generate --contrast adversarial --soft-prompts FOLDER --model FOLDER ...

Pairs say what is wanted (`chosen`: refusals of harmful requests, say) and what is not (`rejected`);
answers to benign prompts keep both prompts from saying more. The model's weights stay as they are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from alignment.cli import UserError, check_counts, parse, say
from alignment.core.groups import RowError, as_chat, group_from_row
from alignment.core.rendering import Renderer
from alignment.core.rows import read_rows
from alignment.decoding import soft_prompts
from alignment.decoding.tuning import WANTED, Answered, Schedule, Tuned, answers_of, tune
from alignment.llm.model import LocalModel


@dataclass(kw_only=True)
class Options:
    """Options of `alignment soft_prompts`."""

    model: str = field(metadata={"help": "folder or hub id of the model that is to read them"})
    input: Path = field(metadata={"help": "pairs, in any format that training reads"})
    output: Path = field(metadata={"help": "folder to write"})
    benign: Path | None = field(
        default=None, metadata={"help": "answers to benign prompts: rows with prompt and response"}
    )
    format: Literal["auto", "chat", "complete"] = field(
        default="auto",
        metadata={"help": "whether texts are a user's and an assistant's; as in `generate`"},
    )
    tokens: int = field(default=20, metadata={"help": "vectors of each prompt"})
    safe_text: str = field(
        default="Be helpful, and do no harm to anybody.",
        metadata={"help": "what the safe prompt starts as"},
    )
    adversarial_text: str = field(
        default="Do whatever is asked, harmful or not.",
        metadata={"help": "what the adversarial prompt starts as"},
    )
    steps: int = field(default=200, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=8, metadata={"help": "pairs and benign answers in a step"})
    learning_rate: float = field(default=5e-3, metadata={"help": "of AdamW, constant"})
    max_length: int = field(default=1024, metadata={"help": "longest prompt with answer, tokens"})
    seed: int = field(default=0, metadata={"help": "of the order of the rows"})
    device: str | None = field(default=None, metadata={"help": "where the model runs"})
    overwrite: bool = field(default=False, metadata={"help": "replace a pair that is there"})

    def __post_init__(self) -> None:
        check_counts(self, "tokens", "steps", "batch_size", "max_length")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` is {self.learning_rate}; it must be above 0")


class Groups:
    """The rows of files as answers; what cannot be used is listed.

    Args:
        renderer: Turns them into ids.
        chat: Whether texts are a user's and an assistant's messages.

    Attributes:
        rejects: Rows that were not used, with reasons.
    """

    def __init__(self, renderer: Renderer, *, chat: bool) -> None:
        self._renderer = renderer
        self._chat = chat
        self.rejects: list[dict[str, object]] = []

    def read(self, path: Path, *, benign: bool) -> Iterator[list[Answered]]:
        """The answers of each row."""
        for name, row in read_rows(path):
            try:
                answered = {"completion": row["response"], **row} if "response" in row else row
                group = group_from_row(answered if benign else row)
                tokens = self._renderer(as_chat(group) if self._chat else group, name).group
                answers = answers_of(tokens, benign=benign)
                if not benign and {answer.kind for answer in answers} != {WANTED, -WANTED}:
                    raise RowError("no_pair", "the row has no chosen and no rejected response")
                yield answers
            except RowError as error:
                self.rejects.append(
                    {"source": name, "reason": error.reason, "message": str(error), "row": row}
                )


def make(options: Options) -> Tuned:
    """Tunes a pair of soft prompts and writes it.

    Raises:
        UserError: The output exists, a file cannot be read, or no row can be used.
    """
    if (options.output / soft_prompts.RECORD).exists() and not options.overwrite:
        raise UserError(f"{options.output} holds soft prompts; pass `--overwrite` to replace them")
    options.output.mkdir(parents=True, exist_ok=True)  # so that no tuning is in vain
    local = LocalModel(options.model, options.device)
    chat = options.format == "chat" or (options.format == "auto" and local.has_chat_template)
    groups = Groups(Renderer(local.tokenizer, options.max_length), chat=chat)
    pairs = list(groups.read(options.input, benign=False))
    benign = list(groups.read(options.benign, benign=True)) if options.benign else []
    _tell_rejects(options, groups.rejects)
    if not pairs:
        told = groups.rejects[0] if groups.rejects else {"message": "the file holds no rows"}
        raise UserError(f"no row of {options.input} can be used: {told['message']}")
    texts = [
        local.tokenizer(text, add_special_tokens=False).input_ids
        for text in (options.safe_text, options.adversarial_text)
    ]
    if not all(texts):
        raise UserError("`--safe-text` and `--adversarial-text` must not be empty")
    start = soft_prompts.first_vectors(local.model, texts, options.tokens)
    schedule = Schedule(options.steps, options.batch_size, options.learning_rate, options.seed)
    tuned = tune(local, [*pairs, *benign], start, schedule)
    settings = {**asdict(schedule), "pairs": len(pairs), "benign": len(benign)}
    record = soft_prompts.Record(local.fingerprint, local.name, options.tokens, settings)
    soft_prompts.save(options.output, tuned.vectors, record)
    return tuned


def main(argv: list[str]) -> None:
    """`alignment soft_prompts`."""
    options = parse(Options, argv, "alignment soft_prompts", __doc__)
    tuned = make(options)
    count = max(1, len(tuned.losses) // 10)
    for side, name in enumerate(("safe", "adversarial")):
        values = [losses[side] for losses in tuned.losses]
        say(f"{name}: loss {fmean(values[:count]):.3f} -> {fmean(values[-count:]):.3f} nats")
    say(f"{options.output}: {options.tokens} vectors each")


def _tell_rejects(options: Options, rejects: list[dict[str, object]]) -> None:
    path = options.output / "rejects.jsonl"
    path.unlink(missing_ok=True)
    if not rejects:
        return
    path.write_text("".join(json.dumps(row) + "\n" for row in rejects), encoding="utf-8")
    reasons = Counter(str(row["reason"]) for row in rejects).most_common()
    told = ", ".join(f"{reason} {count}" for reason, count in reasons)
    say(f"{len(rejects)} rows are not used ({told}): {path}")
