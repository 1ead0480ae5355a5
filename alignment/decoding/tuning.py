"""Tunes a pair of soft prompts on answers that are wanted and answers that are not.

Paper: Adversarial Contrastive Decoding: Boosting Safety Alignment of Large Language Models via
Opposite Prompt Optimization, arXiv 2406.16743. The safe prompt learns the likelihood of wanted
answers and the unlikelihood of unwanted ones, the adversarial prompt the reverse, and both the
likelihood of answers to benign prompts, so that neither says more than it should.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignment.core.packing import TokenGroup
from alignment.decoding import soft_prompts
from alignment.llm.model import LocalModel
from alignment.objectives.base import log_complement

_CERTAIN = 1e-6
_UNSCORED = -100
WANTED, UNWANTED, BENIGN = 1, -1, 0


class Answered(NamedTuple):
    """An answer as ids, and what it is to the prompts.

    Attributes:
        prompt: Ids before it.
        response: Its ids.
        kind: `WANTED`, `UNWANTED` or `BENIGN`.
    """

    prompt: list[int]
    response: list[int]
    kind: int


@dataclass(frozen=True)
class Schedule:
    """How a pair is tuned.

    Attributes:
        steps: Optimiser steps.
        batch_size: Groups of answers in a step.
        learning_rate: Of AdamW, constant, without decay.
        seed: Of the order of the groups.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int


class Tuned(NamedTuple):
    """A pair of soft prompts with what came of its tuning.

    Attributes:
        vectors: (2, n, H) those of the safe and of the adversarial prompt.
        losses: (safe, adversarial) loss of each step, nats.
    """

    vectors: Tensor
    losses: list[tuple[float, float]]


def answers_of(group: TokenGroup, *, benign: bool = False) -> list[Answered]:
    """The answers of a rendered group; those without a side are left out of pairs."""
    parts = zip(group.contexts, group.responses, group.role, strict=True)
    return [
        Answered([*group.prefix, *context], [*response], BENIGN if benign else role)
        for context, response, role in parts
        if benign or role
    ]


def tune(
    local: LocalModel, groups: Sequence[Sequence[Answered]], start: Tensor, schedule: Schedule
) -> Tuned:
    """Tunes both prompts at once; the model's own weights stay as they are.

    Args:
        local: The model.
        groups: What is drawn together: the answers of a pair, or a benign one.
        start: (2, n, H) vectors to start from.
        schedule: How.
    """
    model = local.model.requires_grad_(False)
    embedding, ids = soft_prompts.install(model, start)
    optimizer = torch.optim.AdamW([embedding.vectors], lr=schedule.learning_rate, weight_decay=0.0)
    losses: list[tuple[float, float]] = []
    batches = _batches(groups, schedule)
    for _ in range(schedule.steps):
        batch = next(batches)
        safe = prompt_loss(local, batch, ids.safe, WANTED)
        adversarial = prompt_loss(local, batch, ids.adversarial, UNWANTED)
        optimizer.zero_grad()
        torch.autograd.backward([safe, adversarial])  # each reaches its own vectors alone
        optimizer.step()
        losses.append((safe.item(), adversarial.item()))
    model.set_input_embeddings(embedding.base)
    return Tuned(embedding.vectors.detach().view(start.shape), losses)


def prompt_loss(
    local: LocalModel, answers: Sequence[Answered], prompt: Sequence[int], learnt: int
) -> Tensor:
    """The loss of one of the prompts on some answers, a scalar in nats.

    It is the sum of three means over answers, each answer by the mean over its tokens: - log p of
    the learnt kind, - log(1 - p) of its opposite, and - log p of benign answers.

    Args:
        local: The model, which knows the prompt's ids.
        answers: The answers.
        prompt: Ids of the soft prompt.
        learnt: `WANTED` for the safe prompt, `UNWANTED` for the adversarial one.
    """
    rows = [[*prompt, *answer.prompt, *answer.response] for answer in answers]
    ids, mask = local.padded(rows)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = local.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    lengths = torch.tensor([len(answer.response) for answer in answers], device=ids.device)
    places = torch.arange(ids.shape[1], device=ids.device)
    labels = ids.where(places >= ids.shape[1] - lengths[:, None], _UNSCORED)[:, 1:]
    logps = -cross_entropy(  # (B, T - 1), 0 where nothing is scored
        logits[:, :-1].float().transpose(1, 2), labels, ignore_index=_UNSCORED, reduction="none"
    )
    kinds = torch.tensor([answer.kind for answer in answers], device=ids.device)
    against = (kinds == -learnt)[:, None] & (labels != _UNSCORED)
    costs = torch.where(against, -log_complement(logps, _CERTAIN), -logps)
    per_answer = costs.sum(1) / lengths  # (B,)
    present = sorted({answer.kind for answer in answers})
    means = [per_answer[kinds == kind].mean() for kind in present]
    return torch.stack(means).sum()


def _batches(groups: Sequence[Sequence[Answered]], schedule: Schedule) -> Iterator[list[Answered]]:
    """Shuffled groups without end, by the seed."""
    draw = random.Random(schedule.seed)
    waiting: list[Sequence[Answered]] = []
    while True:
        while len(waiting) < schedule.batch_size:
            waiting += draw.sample(groups, len(groups))
        batch, waiting = waiting[: schedule.batch_size], waiting[schedule.batch_size :]
        yield [answer for group in batch for answer in group]
