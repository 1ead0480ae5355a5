from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from alignment.core.divergences import Chunks, HeadInput, compare_tokens, token_divergences
from alignment.core.logps import HeadTransform, token_logps
from alignment.objectives.base import DivergenceKind, DivergenceSpec

KINDS: tuple[DivergenceKind, ...] = get_args(DivergenceKind)[:4]  # test_buckets.py has the others
TOKENS, RESPONSES = 13, 3
RESPONSE_OF_TOKEN = torch.tensor([0] * 6 + [1] * 2 + [2] * 5)
SMALL = Chunks(rows=4, columns=5)
BENT = HeadTransform(scale=0.5, softcap=3.0)


def head(
    seed: int,
    vocabulary: int,
    *,
    trains: bool = True,
    bias: bool = True,
    transform: HeadTransform | None = None,
) -> HeadInput:
    """Random hidden states and head in float64; the hidden states always take gradient."""
    hidden = 5 + 2 * seed  # teacher and student differ
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return HeadInput(
        draw(TOKENS, hidden).requires_grad_(),
        draw(vocabulary, hidden).requires_grad_(trains),
        draw(vocabulary).requires_grad_(trains) if bias else None,
        transform,
    )


def skews(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).requires_grad_()


def dense(
    student: HeadInput, teacher: HeadInput, response_of_token: Tensor, specs: Sequence[Any]
) -> Tensor:
    """The definition, on full logits."""
    vocabulary = min(len(student.weight), len(teacher.weight))
    log_q, log_p = (_log_probs(side, vocabulary) for side in (student, teacher))
    log_p = log_p.detach()
    p, q = log_p.exp(), log_q.exp()
    columns = []
    for spec in specs:
        a = spec.skew[response_of_token][:, None]
        if spec.kind == "skewed_forward_kl":
            value = p * (log_p - (a * p + (1 - a) * q).log())
        elif spec.kind == "jensen_shannon":
            m = a * p + (1 - a) * q
            value = a * p * (log_p - m.log()) + (1 - a) * q * (log_q - m.log())
        else:
            constant = spec.kind == "anchored_reverse_kl"
            value = q * (log_q - ((1 - a) * p + a * (q.detach() if constant else q)).log())
        compared = torch.ones(RESPONSES) if spec.where is None else spec.where.double()
        columns.append(value.sum(1) * compared[response_of_token])
    return torch.stack(columns, 1)


def _log_probs(side: HeadInput, vocabulary: int) -> Tensor:
    logits = side.hidden @ side.weight[:vocabulary].T
    if side.bias is not None:
        logits = logits + side.bias[:vocabulary]
    if side.transform is not None:
        logits = side.transform.scale * logits
        if side.transform.softcap is not None:
            logits = side.transform.softcap * torch.tanh(logits / side.transform.softcap)
    return logits.log_softmax(1)


def gradients(divergences: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    """Of a weighted sum, so that every entry counts differently."""
    weights = torch.linspace(-1, 2, divergences.numel(), dtype=torch.float64)
    loss = (divergences * weights.reshape(divergences.shape)).sum()
    return list(torch.autograd.grad(loss, [tensor for tensor in inputs if tensor is not None]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("student_vocabulary", "teacher_vocabulary"), [(17, 17), (17, 21), (21, 17)]
)
@pytest.mark.parametrize("transform", [None, BENT, HeadTransform(scale=0.25)])
@pytest.mark.parametrize("trains", [True, False])
def test_chunked_is_dense_in_value_and_in_every_gradient(
    kind: DivergenceKind,
    student_vocabulary: int,
    teacher_vocabulary: int,
    transform: HeadTransform | None,
    trains: bool,
) -> None:
    student = head(0, student_vocabulary, trains=trains, transform=transform)
    teacher = head(1, teacher_vocabulary, trains=False, transform=transform)
    skew = skews(0.1, 0.6, 0.01)
    specs = [DivergenceSpec(kind, skew)]
    inputs = (student.hidden, skew, *((student.weight, student.bias) if trains else ()))
    results = []
    for values in (
        token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, SMALL),
        dense(student, teacher, RESPONSE_OF_TOKEN, specs),
    ):
        results.append([values, *gradients(values, *inputs)])
    for chunked, full in zip(*results, strict=True):
        torch.testing.assert_close(chunked, full, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunks", [Chunks(1, 1), Chunks(3, 17), Chunks(64, 64), None])
def test_several_divergences_of_some_responses_each(chunks: Chunks | None) -> None:
    student, teacher = head(0, 17), head(1, 17, trains=False)
    first, second = skews(0.1, 0.6, 0.3), skews(0.9, 0.2, 0.5)
    specs = [
        DivergenceSpec("skewed_forward_kl", first, torch.tensor([True, False, True])),
        DivergenceSpec("anchored_reverse_kl", second, torch.tensor([False, True, False])),
        DivergenceSpec("jensen_shannon", first, torch.tensor([True, False, False])),
        DivergenceSpec("skewed_reverse_kl", second, torch.tensor([False, False, False])),
    ]
    inputs = (student.hidden, student.weight, student.bias, first, second)
    chunked = token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, chunks)
    full = dense(student, teacher, RESPONSE_OF_TOKEN, specs)
    torch.testing.assert_close(chunked, full, rtol=1e-10, atol=1e-12)
    for column, spec in enumerate(specs):
        assert spec.where is not None
        assert (chunked[~spec.where[RESPONSE_OF_TOKEN], column] == 0).all()
    for got, want in zip(gradients(chunked, *inputs), gradients(full, *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("student_vocabulary", "teacher_vocabulary"), [(17, 17), (17, 21), (21, 17)]
)
@pytest.mark.parametrize("trains", [True, False])
def test_log_probs_of_targets_come_along_for_every_token(
    student_vocabulary: int, teacher_vocabulary: int, trains: bool
) -> None:
    student = head(0, student_vocabulary, trains=trains, transform=BENT)
    teacher = head(1, teacher_vocabulary, trains=False, transform=BENT)
    targets = torch.arange(TOKENS)
    specs = [DivergenceSpec("jensen_shannon", skews(0.1, 0.6, 0.3), torch.arange(3) != 1)]
    inputs = (student, teacher, RESPONSE_OF_TOKEN, specs)
    both = compare_tokens(*inputs, targets=targets, chunks=SMALL)
    alone = token_divergences(*inputs, SMALL)
    for side, logps in ((student, both.logps), (teacher, both.teacher_logps)):
        expected = token_logps(side.hidden, side.weight, targets, side.bias, side.transform)
        torch.testing.assert_close(logps, expected.detach(), rtol=1e-12, atol=1e-12)
        assert not logps.requires_grad
    assert torch.equal(both.divergences, alone)
    leaves = (student.hidden, student.weight, student.bias) if trains else (student.hidden,)
    for got, want in zip(
        gradients(both.divergences, *leaves), gradients(alone, *leaves), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("trains", [True, False])
def test_skews_that_read_log_probs_as_constants_need_one_walk(
    whole: bool, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The skew of a response is what the student gives it of both models' mean probability.

    It equals what a walk for log-probs and one for divergences give; a response that is too long to
    be held whole takes these two.
    """
    student, teacher = head(0, 17, trains=trains), head(1, 17, trains=False)
    targets = torch.arange(TOKENS)

    def specs_of(logps: Tensor, teacher_logps: Tensor) -> list[DivergenceSpec]:
        counts = RESPONSE_OF_TOKEN.bincount()
        means = [
            torch.zeros(3).to(side).index_add(0, RESPONSE_OF_TOKEN, side) / counts
            for side in (logps, teacher_logps)
        ]
        skew = torch.stack(means).softmax(0)[0]
        where = torch.tensor([True, False, True])
        return [
            DivergenceSpec("skewed_forward_kl", skew, where),
            DivergenceSpec("skewed_reverse_kl", skew, ~where),
        ]

    logps, teacher_logps = (
        token_logps(side.hidden, side.weight, targets, side.bias).detach()
        for side in (student, teacher)
    )
    specs = specs_of(logps, teacher_logps)
    assert specs[0].skew.std() > 0.01
    expected = token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, SMALL)
    if not whole:
        monkeypatch.setattr(Chunks, "holding", lambda *_: None)
    found = compare_tokens(
        student, teacher, RESPONSE_OF_TOKEN, specs_of, targets=targets, chunks=SMALL
    )
    for got, want in zip(found, (expected, logps, teacher_logps), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    leaves = (student.hidden, student.weight, student.bias) if trains else (student.hidden,)
    for got, want in zip(
        gradients(found.divergences, *leaves), gradients(expected, *leaves), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_specs_that_read_log_probs_need_targets() -> None:
    with pytest.raises(ValueError, match="need `targets`"):
        compare_tokens(head(0, 9), head(1, 9), RESPONSE_OF_TOKEN, lambda *_: [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trains", [True, False])
def test_gradcheck_where_the_vocabulary_is_no_multiple_of_the_chunk(
    kind: DivergenceKind, trains: bool
) -> None:
    student, teacher = (
        head(0, 11, trains=trains, transform=BENT),
        head(1, 13, trains=False, transform=BENT),
    )
    # The anchored value moves with the q that its gradient holds constant: finite differences can
    # only check its skew.
    varies = kind != "anchored_reverse_kl"

    def divergences(hidden: Tensor, weight: Tensor, bias: Tensor, skew: Tensor) -> Tensor:
        side = replace(student, hidden=hidden, weight=weight, bias=bias)
        specs = [DivergenceSpec(kind, skew)]
        return token_divergences(side, teacher, RESPONSE_OF_TOKEN, specs, SMALL)

    assert student.bias is not None
    inputs = [
        tensor.detach().requires_grad_(varies and tensor.requires_grad)
        for tensor in (student.hidden, student.weight, student.bias)
    ]
    assert torch.autograd.gradcheck(divergences, [*inputs, skews(0.2, 0.7, 0.4)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_the_student_gives_zero_and_no_gradient(kind: DivergenceKind) -> None:
    student = head(0, 17)
    skew = skews(0.1, 0.6, 0.01)
    specs = [DivergenceSpec(kind, skew)]
    values = token_divergences(student, student, RESPONSE_OF_TOKEN, specs, SMALL)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-14, rtol=0)
    for grad in gradients(values, student.hidden, student.weight, student.bias, skew):
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


def two_words(log_odds: float) -> HeadInput:
    """One token over two words with log-probs x - log(1 + e^x) and -log(1 + e^x)."""
    state = torch.tensor([[log_odds, 0.0]], dtype=torch.float64, requires_grad=True)
    return HeadInput(state, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "skew", "expected"),
    [
        ("skewed_forward_kl", 0.0, 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)),
        ("skewed_forward_kl", 0.5, 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)),
        ("skewed_reverse_kl", 0.0, 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        ("anchored_reverse_kl", 0.5, 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)),
    ],
)
def test_worked_numbers(kind: DivergenceKind, skew: float, expected: float) -> None:
    """p = (3/4, 1/4) and q = (1/2, 1/2); halfway between them lies (5/8, 3/8)."""
    specs = [DivergenceSpec(kind, torch.tensor([skew], dtype=torch.float64))]
    only = torch.zeros(1, dtype=torch.int64)
    value = token_divergences(two_words(0.0), two_words(math.log(3)), only, specs)
    assert value.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_odds", [30.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skew", [0.1, 0.9])
def test_probabilities_that_underflow_give_no_nan(
    dtype: torch.dtype, log_odds: float, kind: DivergenceKind, skew: float
) -> None:
    """Teacher and student are sure of different words: p = (1, 0) and q = (0, 1).

    A KL to the mixture is then -log of one's own part in it, which is a in both directions, and
    Jensen-Shannon is the entropy of a.
    """
    states = [torch.tensor([[x, 0.0]], dtype=dtype) for x in (-log_odds, log_odds)]
    student, teacher = (HeadInput(state, torch.eye(2, dtype=dtype)) for state in states)
    student.hidden.requires_grad_()
    weight = torch.tensor([skew], dtype=dtype, requires_grad=True)
    only = torch.zeros(1, dtype=torch.int64)
    value = token_divergences(student, teacher, only, [DivergenceSpec(kind, weight)])
    entropy = -skew * math.log(skew) - (1 - skew) * math.log(1 - skew)
    expected = entropy if kind == "jensen_shannon" else -math.log(skew)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    for grad in torch.autograd.grad(value.sum(), (student.hidden, weight)):
        assert grad.isfinite().all()


def test_words_that_a_bias_rules_out_for_both_models_add_nothing() -> None:
    student, teacher = head(0, 17), head(1, 17, trains=False)
    specs = [DivergenceSpec(kind, skews(0.1, 0.6, 0.3)) for kind in KINDS]
    assert student.bias is not None
    assert teacher.bias is not None
    with torch.no_grad():
        student.bias[14:] = -torch.inf
        teacher.bias[14:] = -torch.inf
    shorter = replace(teacher, weight=teacher.weight[:14], bias=teacher.bias[:14])
    masked = token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, SMALL)
    cut = token_divergences(student, shorter, RESPONSE_OF_TOKEN, specs, SMALL)
    torch.testing.assert_close(masked, cut, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(masked.sum(), student.hidden)
    assert grad.isfinite().all()


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_accumulated_in_float32(trains: bool, half: torch.dtype) -> None:
    student, teacher = head(0, 17, trains=trains), head(1, 17, trains=False)
    specs = [DivergenceSpec(kind, torch.tensor([0.1, 0.6, 0.3])) for kind in KINDS]

    def cast(side: HeadInput, dtype: torch.dtype) -> HeadInput:
        hidden, weight, bias = (
            tensor.detach().to(half).to(dtype).requires_grad_(tensor.requires_grad)
            for tensor in (side.hidden, side.weight, side.bias)
            if tensor is not None
        )
        return HeadInput(hidden, weight, bias)

    narrow, wide = cast(student, half), cast(student, torch.float64)
    got = token_divergences(narrow, cast(teacher, half), RESPONSE_OF_TOKEN, specs, SMALL)
    want = dense(wide, cast(teacher, torch.float64), RESPONSE_OF_TOKEN, specs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    names = ("hidden", "weight", "bias") if trains else ("hidden",)
    for name in names:
        (grad,) = torch.autograd.grad(got.sum(), getattr(narrow, name), retain_graph=True)
        (full,) = torch.autograd.grad(want.sum(), getattr(wide, name), retain_graph=True)
        assert grad.dtype == half
        torch.testing.assert_close(grad.double(), full, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("trains", [True, False])
def test_autocast_changes_nothing(trains: bool) -> None:
    teacher = HeadInput(torch.randn(TOKENS, 7), torch.randn(17, 7))
    hidden, weight = torch.randn(TOKENS, 5), torch.randn(17, 5)
    specs = [DivergenceSpec(kind, torch.tensor([0.1, 0.6, 0.3])) for kind in KINDS]
    results = []
    for enabled in (True, False):
        student = HeadInput(hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, SMALL)
        values.sum().backward()
        results.append((values, student.hidden.grad, student.weight.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


class Watch(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("trains", [True, False])
def test_nothing_nearly_as_large_as_tokens_times_vocabulary_is_made(trains: bool) -> None:
    tokens, size, vocabulary = 160, 8, 32_000
    states, weight = torch.randn(2, tokens, size), torch.randn(2, vocabulary, size)
    student = HeadInput(states[0].requires_grad_(), weight[0].requires_grad_(trains))
    teacher = HeadInput(states[1], weight[1])
    response_of_token = torch.arange(tokens) // 80
    role = torch.tensor([1, -1])
    skew = torch.full((2,), 0.1, requires_grad=True)
    specs = [
        DivergenceSpec("skewed_forward_kl", skew, role > 0),
        DivergenceSpec("anchored_reverse_kl", skew, role < 0),
    ]

    def largest(function: Callable[..., Tensor]) -> int:
        with Watch() as watch:
            function(student, teacher, response_of_token, specs).sum().backward()
        return watch.largest

    assert largest(token_divergences) < tokens * vocabulary / 4
    assert largest(dense) >= tokens * vocabulary / 2


def test_nothing_is_differentiated_where_nothing_asks_for_it() -> None:
    student, teacher = head(0, 17), head(1, 17, trains=False)
    specs = [DivergenceSpec("jensen_shannon", skews(0.1, 0.6, 0.3))]
    with torch.no_grad():
        values = token_divergences(student, teacher, RESPONSE_OF_TOKEN, specs, SMALL)
    assert not values.requires_grad
    torch.testing.assert_close(values, dense(student, teacher, RESPONSE_OF_TOKEN, specs))


def test_inputs_that_do_not_fit_are_refused_by_name() -> None:
    student, teacher = head(0, 17), head(1, 17)
    good = DivergenceSpec("jensen_shannon", skews(0.1, 0.6, 0.3))
    unknown = replace(good, kind="kl")  # type: ignore[arg-type]
    short = replace(good, where=torch.tensor([True]))
    narrow = replace(teacher, hidden=teacher.hidden[:, :5])
    with pytest.raises(ValueError, match="no divergence is asked for"):
        token_divergences(student, teacher, RESPONSE_OF_TOKEN, [])
    with pytest.raises(ValueError, match=r"teacher.hidden is \(13, 5\), expected \(13, 7\)"):
        token_divergences(student, narrow, RESPONSE_OF_TOKEN, [good])
    with pytest.raises(ValueError, match=r"specs\[1\].kind is 'kl': choose one of skewed_forward"):
        token_divergences(student, teacher, RESPONSE_OF_TOKEN, [good, unknown])
    with pytest.raises(ValueError, match=r"skew \(3,\) and where \(1,\) differ"):
        token_divergences(student, teacher, RESPONSE_OF_TOKEN, [short])
