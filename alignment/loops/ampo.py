"""AMPO: many samples, one positive, and few negatives that are chosen to cover the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alignment.core.groups import (
    CHOSEN,
    NEITHER,
    REJECTED,
    group_from_row,
    row_from_group,
    text_of,
)
from alignment.core.rows import read_rows
from alignment.llm.rows import Output, Reject, reject_row
from alignment.rounds.embedding import Vectors, embed
from alignment.rounds.loop import Loop
from alignment.rounds.round import Round
from alignment.rounds.samples import VERSION as GROUPS
from alignment.rounds.samples import write_groups
from alignment.rounds.store import here
from data_builders.selection import Selection, select

VERSION = "2"
"""Of the way in which negatives are selected."""


@dataclass(frozen=True)
class AMPO(Loop):
    """Draws many answers to each prompt, has them rated, and selects k negatives beside the best.

    Paper: AMPO: Active Multi-Preference Optimization, arXiv 2502.18293.

    Differs: how many samples are drawn and kept, and which encoder embeds them, could not be
    verified; the defaults are ours. An answer is embedded as the mean hidden state of a model.
    """

    objective: ClassVar[str] = "ampo"
    builder: ClassVar[str | None] = "reward_groups"

    samples: int = field(default=8, metadata={"help": "answers to each prompt"})
    negatives: int = field(default=3, metadata={"help": "how many are selected of them"})
    selection: Selection = field(
        default="opt_select", metadata={"help": "how negatives are selected"}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "model that embeds answers; unset, the one of the start"}
    )

    def __post_init__(self) -> None:
        if not 1 <= self.negatives < self.samples:
            raise ValueError(
                f"`negatives` is {self.negatives}; it must be from 1 to `samples` - 1, which is "
                f"{self.samples - 1}"
            )

    def check(self, rounds: int) -> None:
        """Refuses a way to select whose library is missing."""
        select(self.selection, np.eye(3), [0.0, 1.0, 2.0], k=1)

    def data(self, at: Round) -> Path:
        """Groups with a positive and selected negatives; the others have left them."""
        answers = at.generate(at.prompts, samples=self.samples)
        settings = {"answers": answers, "version": GROUPS}
        groups = at.rows("groups", lambda output: write_groups(output, answers), settings)
        rated = at.build("reward_groups", groups, **at.builder.options("judge_model", "judge_url"))
        encoder = here(self.encoder) or at.policy.base
        how: dict[str, Any] = {"how": self.selection, "k": self.negatives, "seed": at.seed}
        return at.rows(
            "selected",
            lambda output: write_selected(output, rated, encoder, **how),
            {"rated": rated, "encoder": encoder, **how, "version": VERSION},
        )


def write_selected(  # noqa: PLR0913 - all named
    output: Output, rated: Path, encoder: str | Path, *, how: Selection, k: int, seed: int
) -> None:
    """Writes groups with roles: the best answer by reward, and the selected negatives.

    Answers that are not selected stay with role 0: the loss reads the mean of all rewards. Groups
    whose rewards are all equal are rejected.

    Args:
        output: Where to.
        rated: Groups with rewards.
        encoder: Model that embeds answers; unused by `bottom_k`.
        how: As for `select`.
        k: As for `select`.
        seed: As for `select`.
    """
    named = [(name, row, group_from_row(row)) for name, row in read_rows(rated)]
    texts = [text_of(response.content) for _, _, group in named for response in group.responses]
    vectors = np.zeros((len(texts), 1)) if how == "bottom_k" else embed(texts, encoder)
    first = 0
    for name, row, group in named:
        last = first + len(group.responses)
        rewards = [float(response.reward or 0.0) for response in group.responses]
        if min(rewards) == max(rewards):
            told = f"all {len(rewards)} answers have the reward {rewards[0]}"
            output.reject(reject_row(name, row, Reject("no_gap", told)))
        else:
            roles = roles_of(rewards, vectors[first:last], how, k, seed)
            responses = tuple(
                replace(response, role=role)
                for response, role in zip(group.responses, roles, strict=True)
            )
            meta = {**group.meta, "selection": how, "k": k}
            output.write(row_from_group(replace(group, responses=responses, meta=meta)))
        first = last


def roles_of(
    rewards: Sequence[float], vectors: Vectors, how: Selection, k: int, seed: int
) -> list[int]:
    """(n,) 1 for the best answer, the first of equal ones; -1 for the selected; 0 for the rest.

    What is as good as the best is never selected.
    """
    best = max(range(len(rewards)), key=rewards.__getitem__)
    others = [index for index, reward in enumerate(rewards) if reward < rewards[best]]
    picked = select(how, vectors[others], [rewards[index] for index in others], k, seed)
    negatives = {others[index] for index in picked}
    return [
        CHOSEN if index == best else REJECTED if index in negatives else NEITHER
        for index in range(len(rewards))
    ]
