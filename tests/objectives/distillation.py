"""Pairs scored by a student and a teacher over a small vocabulary, for tests of distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignment.core.divergences import Chunks, HeadInput, token_divergences
from alignment.core.logps import token_logps
from alignment.objectives.base import GroupTerms, Objective, ObjectiveOutput, Progress
from tests.objectives.batches import Reply, batch

LENGTHS = ((2, 1), (1, 3))
TOKENS = sum(map(sum, LENGTHS))
VOCABULARY = 9


def logits(seed: int) -> Tensor:
    """(N, V) float64, of seven tokens in two pairs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, VOCABULARY, generator=generator, dtype=torch.float64)


def score(  # noqa: PLR0913
    objective: Objective,
    student: Tensor,
    teacher: Tensor,
    progress: Progress = Progress(),
    state: Mapping[str, Tensor] | None = None,
    second: Tensor | None = None,
) -> ObjectiveOutput:
    """The objective's output, from the logits up; hidden = logits, head = identity."""
    head = torch.eye(VOCABULARY, dtype=student.dtype)
    targets = torch.arange(TOKENS)
    blank = batch(
        *[(Reply([0.0] * w, role=1), Reply([0.0] * y, role=-1)) for w, y in LENGTHS],
    )
    terms = replace(
        blank,
        logps=token_logps(student, head, targets),
        teacher_logps=token_logps(teacher.detach(), head, targets),
        progress=progress,
        state=state or {},
    )
    specs = objective.divergences(terms)
    if specs:
        sides = HeadInput(student, head), HeadInput(teacher.detach(), head)
        chunks = Chunks(rows=2, columns=4)
        other = None if second is None else HeadInput(second.detach(), head)
        values = token_divergences(*sides, terms.response_of_token, specs, chunks, other)
        terms = replace(terms, divergences=values)
    return objective(terms)


def gradcheck(
    objective: Objective,
    progress: Progress = Progress(),
    state: Mapping[str, Tensor] | None = None,
) -> bool:
    """Whether autograd agrees with finite differences, through log-probs, skews and divergences."""
    teacher, second = logits(1), logits(2)

    def loss(student: Tensor) -> Tensor:
        return score(objective, student, teacher, progress, state, second).loss()

    return torch.autograd.gradcheck(loss, logits(0).requires_grad_())


def assert_nothing_to_learn_from_itself(objective: Objective) -> None:
    """With the teacher for a student, loss and gradient are zero."""
    student = logits(0).requires_grad_()
    loss = score(objective, student, student).loss()
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-14, rtol=0)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-14, rtol=0)


def one_token_pairs(
    divergences: Sequence[Sequence[float]],
    logps: Sequence[Sequence[float]] = (),
    teacher_logps: Sequence[Sequence[float]] = (),
) -> GroupTerms:
    """Pairs whose responses are one token each, with given divergences (chosen, rejected).

    The divergences stand in one column.
    """
    policy = logps or [[-1.0, -1.0]] * len(divergences)
    rows = zip(policy, teacher_logps or policy, strict=True)
    terms = batch(
        *[
            (Reply([w], teacher=[tw], role=1), Reply([y], teacher=[ty], role=-1))
            for (w, y), (tw, ty) in rows
        ]
    )
    column = torch.tensor(divergences, dtype=torch.float64).flatten()
    return replace(terms, divergences=column[:, None].requires_grad_())


def two_columns(terms: GroupTerms) -> GroupTerms:
    """Divergences of chosen responses in the first column, of rejected ones in the second."""
    assert terms.divergences is not None
    sides = torch.stack((terms.role > 0, terms.role < 0), 1)
    return replace(terms, divergences=terms.divergences * sides)
