"""Divergences between teacher and student over a whole vocabulary, without building the logits.

A few tokens at a time: their logits under both models are computed tile by tile, which gives the
normalisers; the tiles are walked again for the divergence and for its gradient. Nothing of size
(tokens, vocabulary) is alive, forward or backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignment.core.buckets import (
    Bucketed,
    bucketed_kl,
    expected_advantage,
    stored_advantage,
)
from alignment.core.logps import HeadTransform, accumulation_dtype, project, token_logps
from alignment.objectives.base import DivergenceKind, DivergenceSpec

SpecsOfLogps: TypeAlias = Callable[[Tensor, Tensor], Sequence[DivergenceSpec]]
"""Specs from the (N,) log-probs of student and teacher; the skew of a response reads its own."""


@dataclass(frozen=True)
class HeadInput:
    """What a model's logits are made of.

    Attributes:
        hidden: (N, H) hidden state at the position that predicts each token.
        weight: (V, H) rows of the head.
        bias: (V,) or None.
        transform: What the model does to its logits; None is nothing.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    transform: HeadTransform | None = None

    def detached(self) -> HeadInput:
        """The same as a constant."""
        bias = None if self.bias is None else self.bias.detach()
        return HeadInput(self.hidden.detach(), self.weight.detach(), bias, self.transform)


class Chunks(NamedTuple):
    """How much is computed at once.

    Attributes:
        rows: Tokens whose logits are alive together.
        columns: Entries of the vocabulary that one step of the arithmetic touches.
    """

    rows: int
    columns: int

    @classmethod
    def of(cls, tokens: int, vocabulary: int, device: torch.device) -> Chunks:
        """A fair choice.

        A sixth of the tokens, at least 4, and at most 64 MB (CUDA: 256 MB) a buffer; tiles of
        8 MB (CUDA: 64 MB), as each costs a fixed number of kernels or of meetings of threads.
        """
        cuda = device.type == "cuda"
        rows = max(4, min(tokens // 6, 2 ** (26 if cuda else 24) // vocabulary))
        return cls(rows, max(4096, 2 ** (24 if cuda else 21) // rows))

    def holding(self, response: int, vocabulary: int, device: torch.device) -> Chunks | None:
        """These with room for a whole response, None where that takes over 256 MB (CUDA: 1 GB)."""
        if response * vocabulary > 2 ** (28 if device.type == "cuda" else 26):
            return None
        return self._replace(rows=max(self.rows, response))


class Comparison(NamedTuple):
    """What one walk over the vocabulary gives.

    Attributes:
        divergences: (N, D) nats, zero where a spec leaves a response out.
        logps: (N,) nats, log-probs of the targets under the student, detached; empty without them.
        teacher_logps: The same under the teacher.
    """

    divergences: Tensor
    logps: Tensor
    teacher_logps: Tensor


def token_divergences(  # noqa: PLR0913
    student: HeadInput,
    teacher: HeadInput,
    response_of_token: Tensor,
    specs: Sequence[DivergenceSpec],
    chunks: Chunks | None = None,
    second: HeadInput | None = None,
) -> Tensor:
    """(N, D) the divergences of `compare_tokens` alone."""
    return compare_tokens(
        student, teacher, response_of_token, specs, second=second, chunks=chunks
    ).divergences


def compare_tokens(  # noqa: PLR0913
    student: HeadInput,
    teacher: HeadInput,
    response_of_token: Tensor,
    specs: Sequence[DivergenceSpec] | SpecsOfLogps,
    *,
    targets: Tensor | None = None,
    second: HeadInput | None = None,
    chunks: Chunks | None = None,
) -> Comparison:
    """Divergences between the next-token distributions of teacher and student.

    Both distributions are normalised over the common vocabulary: where one head has more rows than
    the other, as padding makes it, the excess rows take no part. Hidden sizes may differ.

    With a frozen head the gradient's direction for every token is computed during the forward
    pass, so the backward pass costs one multiplication. A trainable head is walked again.

    Args:
        student: Gradient flows to its hidden states, and to its head where that requires grad.
        teacher: Constant.
        response_of_token: (N,) int64, the response a token belongs to.
        specs: D >= 1 divergences; one whose skew requires grad gets the skew's gradient. A function
            that gives them from log-probs, as constants, is called as these become known; where
            responses are too long to be held whole, a walk for log-probs alone comes first.
        targets: (N,) int64 token ids of the common vocabulary, whose log-probs come at no cost;
            each is normalised over its model's whole vocabulary, as `token_logps` does it.
        second: The second teacher, constant, for kinds that compare two teachers.
        chunks: How much to compute at once; None chooses by device and size.

    Returns:
        The divergences, in float64 for float64 hidden states of the student, else in float32.

    Raises:
        ValueError: Shapes do not fit, or a kind is unknown.
    """
    heads = [head for head in (student, teacher, second) if head is not None]
    vocabulary = min(head.weight.shape[0] for head in heads)
    device, dtype = student.hidden.device, accumulation_dtype(student.hidden.dtype)
    if chunks is None:
        chunks = Chunks.of(response_of_token.numel(), vocabulary, device)
    specs_of = None
    if callable(specs):
        if targets is None:
            raise ValueError("compare_tokens: specs that read log-probs need `targets`")
        held = chunks.holding(int(response_of_token.bincount().max()), vocabulary, device)
        if held is None:
            specs = specs(_logps(student, targets), _logps(teacher, targets))
        else:
            chunks, specs_of = held, specs
            unknown = response_of_token.new_zeros(response_of_token.shape, dtype=dtype)
            specs = specs_of(unknown, unknown)
    _check(student, teacher, second, response_of_token, specs)
    everywhere = torch.ones_like(response_of_token, dtype=torch.bool)
    selected = [
        everywhere if spec.where is None else spec.where[response_of_token] for spec in specs
    ]

    def spread(specs: Sequence[DivergenceSpec]) -> Tensor:
        return torch.stack([spec.skew.to(dtype)[response_of_token] for spec in specs], 1)

    task = _Task(
        teacher.detached(),
        None if second is None else second.detached(),
        student.transform or HeadTransform(),
        tuple(spec.kind for spec in specs),
        tuple(spec.top_k for spec in specs),
        torch.stack(selected, 1),
        targets,
        vocabulary,
        chunks,
        response_of_token,
        None if specs_of is None else lambda *logps: spread(specs_of(*logps)),
    )
    # Autocast would round the logits to half precision.
    with torch.autocast(student.hidden.device.type, enabled=False):
        return Comparison(
            *_TokenDivergences.apply(  # type: ignore[no-untyped-call]
                student.hidden, student.weight, student.bias, spread(specs), task
            )
        )


class _Task(NamedTuple):
    """What is constant about one call of `compare_tokens`."""

    teacher: HeadInput
    second: HeadInput | None
    transform: HeadTransform
    kinds: tuple[DivergenceKind, ...]
    top_ks: tuple[int | None, ...]
    selected: Tensor  # (N, D) bool
    targets: Tensor | None  # (N,) int64
    vocabulary: int
    chunks: Chunks
    response_of_token: Tensor  # (N,) int64
    skews_of: Callable[[Tensor, Tensor], Tensor] | None  # log-probs (N,) -> (N, D)


class _Side(NamedTuple):
    """One model's log-probs of some tokens, as logits and normalisers."""

    logits: Tensor  # (n, V) over the common vocabulary, transformed
    normaliser: Tensor  # (n, 1) of the common vocabulary
    whole: Tensor  # (n, 1) of the model's whole vocabulary

    def tile(self, part: slice) -> Tensor:
        return self.logits[:, part] - self.normaliser

    def likeliest(self, count: int | None) -> tuple[Tensor, Tensor]:
        """(n, k) log-probs of the likeliest tokens, the best first, and their ids."""
        size = self.logits.shape[1]
        found = self.logits.topk(size if count is None else min(count, size), 1)
        return found.values - self.normaliser, found.indices

    def logps(self, targets: Tensor) -> Tensor:
        return (self.logits.gather(1, targets[:, None]) - self.whole).squeeze(1)


class _Rows(NamedTuple):
    """Tokens that all need the same divergences."""

    tokens: Tensor  # (n,) int64
    columns: list[int]
    p: _Side
    q: _Side
    r: _Side | None


class _TokenDivergences(torch.autograd.Function):
    """See `compare_tokens`."""

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, skews: Tensor, task: _Task
    ) -> tuple[Tensor, Tensor, Tensor]:
        want_hidden, want_weight, want_bias, want_skews = ctx.needs_input_grad[:4]
        head_trains = want_weight or want_bias
        divergences = torch.zeros_like(skews)
        slopes = torch.zeros_like(skews) if want_skews else None
        logps, teacher_logps = skews.new_zeros((2, 0 if task.targets is None else skews.shape[0]))
        if task.skews_of is not None:
            skews = skews.clone()
        pieces: list[tuple[Tensor, int]] = []
        directions: list[Tensor] = []
        student = HeadInput(hidden, weight, bias, task.transform)
        room = _buffer(student, task) if want_hidden and not head_trains else None
        for rows in _walk(student, task):
            if task.targets is not None:
                targets = task.targets[rows.tokens]
                logps[rows.tokens] = rows.q.logps(targets)
                teacher_logps[rows.tokens] = rows.p.logps(targets)
            if task.skews_of is not None:
                skews[rows.tokens] = task.skews_of(logps, teacher_logps)[rows.tokens]
            pull = None if room is None else room[: rows.tokens.numel()]
            for column in rows.columns:
                value, slope = _diverge(rows, column, skews, task, pull)
                divergences[rows.tokens, column] = value
                if slopes is not None:
                    slopes[rows.tokens, column] = slope
                if pull is not None:
                    pieces.append((rows.tokens, column))
                    directions.append(_through_head(pull, weight, task))
        # The teacher is only held on to where it is walked again, and then for divergences alone.
        ctx.task, ctx.pieces = (task._replace(targets=None) if head_trains else None), pieces
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        inputs = (hidden, weight, bias, skews) if head_trains else ()
        ctx.save_for_backward(slopes, *inputs, *directions)
        ctx.mark_non_differentiable(logps, teacher_logps)
        return divergences, logps, teacher_logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        slopes, *saved = ctx.saved_tensors
        want_hidden = ctx.needs_input_grad[0]
        grad_skews = None if slopes is None else grad * slopes
        grad_hidden = grad.new_zeros(ctx.shape) if want_hidden else None
        grad_weight = grad_bias = None
        if ctx.task is not None:
            hidden, weight, bias, skews = saved
            student = HeadInput(hidden, weight, bias, ctx.task.transform)
            grad_weight, grad_bias = _train_head(ctx, grad, grad_hidden, student, skews)
        elif grad_hidden is not None:
            for (tokens, column), direction in zip(ctx.pieces, saved, strict=True):
                grad_hidden[tokens] += grad[tokens, column, None] * direction
        return (
            None if grad_hidden is None else grad_hidden.to(ctx.dtype),
            grad_weight,
            grad_bias,
            grad_skews,
            None,
        )


def _train_head(
    ctx: Any, grad: Tensor, grad_hidden: Tensor | None, student: HeadInput, skews: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The head's gradient, and the hidden states' into `grad_hidden`, by walking once more."""
    task, (_, want_weight, want_bias) = ctx.task, ctx.needs_input_grad[:3]
    weight, bias = student.weight, student.bias
    grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if want_weight else None
    grad_bias = torch.zeros_like(bias, dtype=grad.dtype) if bias is not None and want_bias else None
    room = _buffer(student, task)
    for rows in _walk(student, task):
        states = student.hidden[rows.tokens].to(grad.dtype)
        for column in rows.columns:
            pull = room[: rows.tokens.numel()]
            _diverge(rows, column, skews, task, pull)
            pull.mul_(grad[rows.tokens, column, None])
            if grad_hidden is not None:
                grad_hidden[rows.tokens] += _through_head(pull, weight, task)
            for part in _tiles(task):
                if grad_weight is not None:
                    grad_weight[part].addmm_(pull[:, part].T, states)
                if grad_bias is not None:
                    grad_bias[part] += pull[:, part].sum(0)
    return (
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )


def _walk(student: HeadInput, task: _Task) -> Iterator[_Rows]:
    """Some tokens at a time, in buffers that the next ones overwrite."""
    room_p, room_q = _buffer(student, task), _buffer(student, task)
    room_r = None if task.second is None else _buffer(student, task)
    for needed in torch.unique(task.selected, dim=0):
        columns = needed.nonzero().flatten().tolist()
        same = (task.selected == needed).all(1).nonzero().flatten()
        for tokens in _pieces(same, task) if columns or task.targets is not None else ():
            p = _score(task.teacher, tokens, task, room_p[: tokens.numel()])
            q = _score(student, tokens, task, room_q[: tokens.numel()])
            r = None
            if columns and task.second is not None and room_r is not None:
                r = _score(task.second, tokens, task, room_r[: tokens.numel()])
            yield _Rows(tokens, columns, p, q, r)


def _pieces(tokens: Tensor, task: _Task) -> tuple[Tensor, ...]:
    """Tokens in chunks; where skews wait for log-probs, chunks of whole responses."""
    if task.skews_of is None:
        return torch.split(tokens, task.chunks.rows)
    sizes: list[int] = []
    lengths = torch.unique_consecutive(task.response_of_token[tokens], return_counts=True)[1]
    for length in lengths.tolist():
        if sizes and sizes[-1] + length <= task.chunks.rows:
            sizes[-1] += length
        else:
            sizes.append(length)
    return torch.split(tokens, sizes)


def _logps(head: HeadInput, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return token_logps(head.hidden, head.weight, targets, head.bias, head.transform)


def _buffer(student: HeadInput, task: _Task) -> Tensor:
    """Room for one number per token and entry of the vocabulary, for a chunk of tokens."""
    rows = min(task.chunks.rows, student.hidden.shape[0])
    dtype = accumulation_dtype(student.hidden.dtype)
    return student.hidden.new_empty((rows, task.vocabulary), dtype=dtype)


def _score(head: HeadInput, tokens: Tensor, task: _Task, logits: Tensor) -> _Side:
    """Logits and normalisers of some tokens; `logits` (n, V) is overwritten."""
    states, transform = head.hidden[tokens], head.transform or HeadTransform()
    normaliser = whole = logits.new_full((tokens.numel(), 1), -torch.inf)
    # A finite floor: probability 0 times a log of minus infinity would be NaN.
    floor = torch.finfo(logits.dtype).min * 1e-6
    for part in _tiles(task, 0, task.vocabulary) + _tiles(task, task.vocabulary, len(head.weight)):
        common = part.start < task.vocabulary
        if not common and task.targets is None:
            break
        bias = None if head.bias is None else head.bias[part].to(logits.dtype).clamp(min=floor)
        tile = transform(project(states, head.weight[part], bias, logits.dtype))
        whole = torch.logaddexp(whole, tile.logsumexp(1, keepdim=True))
        if common:
            logits[:, part], normaliser = tile, whole
    return _Side(logits, normaliser, whole)


def _diverge(
    rows: _Rows, column: int, skews: Tensor, task: _Task, pull: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One divergence of some tokens.

    Args:
        rows: The tokens.
        column: Which divergence.
        skews: (N, D).
        task: What is constant.
        pull: (n, V), gets the derivative by the student's raw logits; None where none is wanted.

    Returns:
        The divergence (n,) and its derivative by the skew (n,).
    """
    kind, skew = task.kinds[column], skews[rows.tokens, column, None]
    if kind in ("bucketed_forward_kl", "expected_advantage", "clipped_advantage"):
        kept = _keep(kind, rows, task.top_ks[column], pull)
        if pull is not None:
            _close(pull, kept.push.sum(1, keepdim=True), rows.q, task)
        return kept.value.squeeze(1), torch.zeros_like(kept.value).squeeze(1)
    reverse = kind in ("skewed_reverse_kl", "anchored_reverse_kl")
    of_p, of_q = (1 - skew, skew) if reverse else (skew, 1 - skew)  # (n, 1) parts of the mixture
    value, pushed, share = skew.new_zeros((3, *skew.shape))
    for part in _tiles(task):
        tile = _tile(kind, rows.p.tile(part), rows.q.tile(part), of_p, of_q)
        value += tile.value
        pushed += tile.pushed
        share += tile.share
        if pull is not None:
            pull[:, part] = tile.push
    if pull is not None:
        _close(pull, pushed, rows.q, task)
    slope = share if kind == "jensen_shannon" else (share - of_q) / (of_p * of_q)
    return value.squeeze(1), (-slope if reverse else slope).squeeze(1)


def _keep(kind: DivergenceKind, rows: _Rows, top_k: int | None, pull: Tensor | None) -> Bucketed:
    """What reads the teacher's likeliest tokens alone; `pull` (n, V) gets the push of all."""
    log_p, index = rows.p.likeliest(top_k)
    log_q = rows.q.logits.gather(1, index) - rows.q.normaliser
    if kind == "bucketed_forward_kl":
        kept = bucketed_kl(log_p, log_q)
    elif rows.r is None:
        raise ValueError(f"compare_tokens: {kind} compares two teachers, and there is no second")
    else:
        log_r = rows.r.logits.gather(1, index) - rows.r.normaliser
        if top_k is None:
            advantage = log_p - log_r
        else:
            least = rows.r.likeliest(top_k)[0][:, -1:]
            advantage = stored_advantage(log_p, log_r, log_r >= least)
        kept = expected_advantage(log_q, advantage, kind == "clipped_advantage")
    if pull is not None:
        pull.zero_().scatter_(1, index, kept.push)
    return kept


class _Tile(NamedTuple):
    """What some entries (n, v) of the vocabulary add to a divergence.

    Attributes:
        value: (n, 1), to the divergence.
        push: (n, v), its derivative by log q, up to multiples of q, which a log-softmax cancels.
        pushed: (n, 1), the sum of `push`.
        share: (n, 1), to the sum that its derivative by the skew is made of.
    """

    value: Tensor
    push: Tensor
    pushed: Tensor
    share: Tensor


def _tile(kind: DivergenceKind, log_p: Tensor, log_q: Tensor, of_p: Tensor, of_q: Tensor) -> _Tile:
    """The arithmetic of `DivergenceSpec`'s table, m = of_p p + of_q q.

    In logarithms, so that weights of 0 and 1 and probabilities that underflow need no care.
    """
    log_m = torch.logaddexp(log_p + of_p.log(), log_q + of_q.log())
    if kind == "jensen_shannon":
        terms_q = log_q.exp().mul_(log_q.sub_(log_m)).mul_(of_q)
        kl_p = log_p.exp().mul_(log_p.sub_(log_m)).sum(1, keepdim=True)
        pushed = terms_q.sum(1, keepdim=True)
        return _Tile(of_p * kl_p + pushed, terms_q, pushed, kl_p - pushed / of_q)
    part_of_q = (log_q - log_m).add_(of_q.log()).exp_()  # of_q q / m, in [0, 1]
    if kind == "skewed_forward_kl":
        p = log_p.exp()
        shares = part_of_q.mul_(p)
        value = p.mul_(log_p.sub_(log_m)).sum(1, keepdim=True)
        share = shares.sum(1, keepdim=True)
        return _Tile(value, shares.neg_(), -share, share)
    q = log_q.exp()
    share = torch.linalg.vecdot(q, part_of_q).unsqueeze(1)
    terms_q = q * log_q.sub_(log_m)
    value = terms_q.sum(1, keepdim=True)
    if kind == "skewed_reverse_kl":
        return _Tile(value, terms_q.sub_(part_of_q.mul_(q)), value - share, share)
    return _Tile(value, terms_q, value, share)


def _close(pull: Tensor, pushed: Tensor, q: _Side, task: _Task) -> None:
    """Turns derivatives by log-probs into derivatives by raw logits, in place.

    Args:
        pull: (n, V).
        pushed: (n, 1), its sum over the vocabulary.
        q: The student.
        task: What is constant.
    """
    for part in _tiles(task):
        # Every logit lowers all log-probs by its own probability.
        pull[:, part].sub_(q.tile(part).exp_().mul_(pushed))
        bend = task.transform.slope(q.logits[:, part])
        if bend is not None:
            pull[:, part].mul_(bend)


def _through_head(pull: Tensor, weight: Tensor, task: _Task) -> Tensor:
    """(n, V) derivatives by raw logits -> (n, H) by hidden states."""
    states = pull.new_zeros(pull.shape[0], weight.shape[1])
    for part in _tiles(task):
        states.addmm_(pull[:, part], weight[part].to(pull.dtype))
    return states


def _tiles(task: _Task, start: int = 0, end: int | None = None) -> list[slice]:
    """The common vocabulary, or the rows of a head from `start` to `end`, in parts."""
    end, size = task.vocabulary if end is None else end, task.chunks.columns
    return [slice(i, min(i + size, end)) for i in range(start, end, size)]


def _check(
    student: HeadInput,
    teacher: HeadInput,
    second: HeadInput | None,
    response_of_token: Tensor,
    specs: Sequence[DivergenceSpec],
) -> None:
    tokens = response_of_token.numel()
    if not specs:
        raise ValueError("compare_tokens: no divergence is asked for; call it with some specs")
    for name, head in (("student", student), ("teacher", teacher), ("second", second)):
        if head is None:
            continue
        size = head.weight.shape[1]
        if head.hidden.shape != (tokens, size):
            raise ValueError(
                f"compare_tokens: {name}.hidden is {tuple(head.hidden.shape)}, expected "
                f"({tokens}, {size}): one state per response token, as wide as its head"
            )
    for index, spec in enumerate(specs):
        if spec.kind not in get_args(DivergenceKind):
            known = ", ".join(get_args(DivergenceKind))
            raise ValueError(f"specs[{index}].kind is {spec.kind!r}: choose one of {known}")
        if spec.top_k is not None and spec.top_k < 1:
            raise ValueError(f"specs[{index}].top_k is {spec.top_k}; it must be at least 1")
        if spec.where is not None and spec.where.shape != spec.skew.shape:
            raise ValueError(
                f"specs[{index}]: skew {tuple(spec.skew.shape)} and where "
                f"{tuple(spec.where.shape)} differ; both have one value per response"
            )
