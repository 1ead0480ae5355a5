from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignment.core.divergences import HeadInput, token_divergences
from alignment.core.logps import HeadTransform
from alignment.objectives.base import DivergenceKind, DivergenceSpec
from tests.core.test_divergences import (
    BENT,
    RESPONSE_OF_TOKEN,
    SMALL,
    gradients,
    head,
    skews,
)
from tests.core.test_divergences import _log_probs as log_probs

NONE = torch.zeros(3, dtype=torch.float64)


def dense_kl(p: Tensor, q: Tensor, r: Tensor, top_k: int) -> Tensor:
    """The definition on whole distributions (N, V)."""
    kept, index = p.topk(top_k, 1)
    pt = torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1).clamp(1e-8, 1 - 1e-8)
    taken = q.gather(1, index)
    qt = torch.cat([taken, 1 - taken.sum(1, keepdim=True)], 1).clamp(1e-8, 1 - 1e-8)
    return (pt * (pt.log() - qt.clamp(min=1e-7).log())).sum(1)


def advantages(p: Tensor, r: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    kept, index = p.topk(top_k, 1)
    stored = torch.zeros_like(r).scatter(1, r.topk(top_k, 1).indices, 1.0).bool()
    other = torch.where(stored, r, kept[:, -1:]).gather(1, index)
    return kept.clamp(min=1e-7).log() - other.clamp(min=1e-7).log(), index


def dense_signed(p: Tensor, q: Tensor, r: Tensor, top_k: int) -> Tensor:
    advantage, index = advantages(p, r, top_k)
    return (q.gather(1, index) * advantage).sum(1)


def dense_clipped(p: Tensor, q: Tensor, r: Tensor, top_k: int) -> Tensor:
    advantage, index = advantages(p, r, top_k)
    taken = q.gather(1, index)
    q = torch.cat([taken, 1 - taken.sum(1, keepdim=True)], 1).clamp(1e-8, 1 - 1e-8)
    rest = torch.full_like(q[:, :1], 1e-8)
    return (q * torch.cat([advantage.clamp(1e-8, 1 - 1e-8), rest], 1)).sum(1)


KINDS: dict[DivergenceKind, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "bucketed_forward_kl": dense_kl,
    "expected_advantage": dense_signed,
    "clipped_advantage": dense_clipped,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 4, 17])
@pytest.mark.parametrize("transform", [None, BENT])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("rows", [17, 21])
def test_chunked_is_dense_in_value_and_in_every_gradient(
    kind: DivergenceKind, top_k: int, transform: HeadTransform | None, trains: bool, rows: int
) -> None:
    student = head(0, 17, trains=trains, transform=transform)
    teacher, second = (head(seed, rows, trains=False, transform=transform) for seed in (1, 2))
    inputs = (student.hidden, *((student.weight, student.bias) if trains else ()))
    chunked = token_divergences(
        student,
        teacher,
        RESPONSE_OF_TOKEN,
        [DivergenceSpec(kind, NONE, None, top_k)],
        SMALL,
        second,
    )
    p, q, r = (log_probs(side, 17).exp() for side in (teacher, student, second))
    full = KINDS[kind](p.detach(), q, r.detach(), top_k)[:, None]
    torch.testing.assert_close(chunked, full, rtol=1e-10, atol=1e-12)
    for got, want in zip(gradients(chunked, *inputs), gradients(full, *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_floored_buckets_carry_no_gradient() -> None:
    """A student that is certain: its other buckets lie below the floor and only its own would move,
    which is above the ceiling.
    """
    student = HeadInput(50 * torch.eye(4, dtype=torch.float64)[:1], torch.eye(4).double())
    student.hidden.requires_grad_()
    teacher = HeadInput(torch.ones(1, 4).double(), torch.eye(4).double())
    for kind in ("bucketed_forward_kl", "clipped_advantage"):
        value = token_divergences(
            student,
            teacher,
            torch.tensor([0]),
            [DivergenceSpec(kind, NONE[:1], None, 2)],
            second=teacher,
        )
        (grad,) = torch.autograd.grad(value.sum(), student.hidden)
        assert grad.abs().max() < 1e-7


def test_the_whole_vocabulary_gives_the_plain_expectation_without_floors() -> None:
    """sum of q (log p - log r) = KL(q, r) - KL(q, p)."""
    student, teacher, second = (head(seed, 17, trains=False) for seed in range(3))
    spec = [DivergenceSpec("expected_advantage", NONE)]
    value = token_divergences(student, teacher, RESPONSE_OF_TOKEN, spec, second=second)
    reverse = [DivergenceSpec("skewed_reverse_kl", NONE)]
    kl_p, kl_r = (
        token_divergences(student, side, RESPONSE_OF_TOKEN, reverse) for side in (teacher, second)
    )
    torch.testing.assert_close(value, kl_r - kl_p, rtol=1e-10, atol=1e-12)


def test_equal_teachers_give_no_advantage() -> None:
    student, teacher = head(0, 17), head(1, 17, trains=False)
    specs = [DivergenceSpec("expected_advantage", NONE, None, k) for k in (None, 3)]
    value = token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, second=teacher)
    assert value.abs().max() == 0


def test_what_is_missing_is_named() -> None:
    student, teacher = head(0, 17), head(1, 17, trains=False)

    def compare(spec: DivergenceSpec) -> None:
        token_divergences(student, teacher, RESPONSE_OF_TOKEN, [spec])

    with pytest.raises(ValueError, match="compares two teachers, and there is no second"):
        compare(DivergenceSpec("expected_advantage", NONE))
    with pytest.raises(ValueError, match=r"top_k is 0; it must be at least 1"):
        compare(DivergenceSpec("bucketed_forward_kl", skews(0, 0, 0), None, 0))
