"""Log-probs of given tokens from hidden states, without ever building the logits.

The vocabulary is walked in chunks, as flash attention walks the keys: a running maximum, a running
sum of exponentials and, when gradients are wanted, a running expectation of the head's rows.
Nothing of size (tokens, vocabulary) is alive, forward or backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNKS = {"cpu": (512, 4096), "cuda": (4096, 16384)}
"""Tokens and entries of the vocabulary whose logits are alive at once: 8 MB that stay in a CPU's
cache, 256 MB that fill a GPU."""


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to its logits after the head: `softcap * tanh(scale * z / softcap)`.

    Attributes:
        scale: Factor on the logits.
        softcap: Bound of the logits; None leaves them unbounded.
    """

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of_config(cls, config: Any) -> HeadTransform:
        """Reads the transform from a transformers configuration.

        Architectures name the same two numbers differently: `logit_scale` (Cohere),
        `output_multiplier`, `lm_head_multiplier` (Falcon-H1), `logits_scaling` (Granite divides by
        it, HyperCLOVA X multiplies).
        """
        config = config.get_text_config()
        scale = 1.0
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if getattr(config, name, None) is not None:
                scale = float(getattr(config, name))
                break
        else:
            scaling = getattr(config, "logits_scaling", None)
            if scaling is not None:
                scale = float(scaling if config.model_type == "hyperclovax" else 1 / scaling)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(scale, None if softcap is None else float(softcap))

    def __call__(self, logits: Tensor) -> Tensor:
        """Transforms `logits` in place and returns them."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, transformed: Tensor) -> Tensor | None:
        """D transformed / d raw, from the transformed logits; None where it is 1 everywhere."""
        if self.softcap is not None:
            return (transformed / self.softcap).square_().neg_().add_(1).mul_(self.scale)
        return None if self.scale == 1.0 else torch.full_like(transformed, self.scale)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower accumulates in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`hidden @ weight.T + bias` (n, v) in `dtype`; half inputs are not rounded in between."""
    if hidden.dtype == weight.dtype == dtype:
        logits = hidden @ weight.T
    elif hidden.is_cuda and hidden.dtype == weight.dtype:
        logits = torch.mm(hidden, weight.T, out_dtype=dtype)
    else:
        logits = hidden.to(dtype) @ weight.to(dtype).T
    return logits if bias is None else logits.add_(bias.to(dtype))


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    transform: HeadTransform | None = None,
) -> Tensor:
    """Log-prob of each target token.

    With a frozen head the gradient's direction for every token is accumulated during the forward
    pass, so the backward pass costs one multiplication and no second walk over the vocabulary. A
    trainable head is walked again.

    Args:
        hidden: (N, H) hidden state at the position that predicts the token.
        weight: (V, H) rows of the head.
        targets: (N,) int64 token ids below V.
        bias: (V,) or None.
        transform: What the model does to its logits; None is nothing.

    Returns:
        (N,) nats; float64 for float64 inputs, else float32.

    Raises:
        ValueError: Shapes do not fit.
    """
    tokens, size = hidden.shape
    if weight.shape[1] != size or targets.shape != (tokens,):
        raise ValueError(
            f"token_logps: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and "
            f"targets {tuple(targets.shape)} do not fit"
        )
    logps: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, transform if transform is not None else HeadTransform()
    )
    return logps


class _TokenLogps(torch.autograd.Function):
    """Flash-style cross-entropy head; see `token_logps`."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes positional arguments
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: HeadTransform,
    ) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        head_trains = want_weight or want_bias
        logps = hidden.new_empty(hidden.shape[0], dtype=dtype)
        normaliser = torch.empty_like(logps)
        direction = torch.empty_like(hidden) if want_hidden and not head_trains else None
        for part in _chunks(hidden, "tokens"):
            chunk_logps, chunk_normaliser, chunk_direction = _walk(
                hidden[part], weight, bias, targets[part], transform, direction is not None
            )
            logps[part], normaliser[part] = chunk_logps, chunk_normaliser
            if direction is not None and chunk_direction is not None:
                direction[part] = chunk_direction.to(hidden.dtype)
        ctx.transform = transform
        if head_trains:
            ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        elif direction is not None:
            ctx.save_for_backward(direction)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (direction,) = ctx.saved_tensors
            scaled = grad[:, None] * direction.to(grad.dtype)
            return scaled.to(direction.dtype), None, None, None, None
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        dtype = accumulation_dtype(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=dtype) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if want_bias else None
        for part in _chunks(hidden, "tokens"):
            rows, upstream = hidden[part], grad[part]
            for columns in _chunks(weight, "vocabulary"):
                head = weight[columns]
                logits = ctx.transform(
                    project(rows, head, None if bias is None else bias[columns], dtype)
                )
                slope = ctx.transform.slope(logits)
                # d logp_n / d logit_nv = [v is the target] - p_nv
                pull = logits.sub_(normaliser[part][:, None]).exp_().neg_()
                local = targets[part] - columns.start
                inside = ((local >= 0) & (local < pull.shape[1])).nonzero().squeeze(1)
                pull[inside, local[inside]] += 1
                pull.mul_(upstream[:, None])
                if slope is not None:
                    pull.mul_(slope)
                if grad_hidden is not None:
                    grad_hidden[part].addmm_(pull, head.to(dtype))
                if grad_weight is not None:
                    grad_weight[columns].addmm_(pull.T, rows.to(dtype))
                if grad_bias is not None:
                    grad_bias[columns] += pull.sum(0)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _walk(  # noqa: PLR0913 - the arguments of `token_logps` and one more
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: HeadTransform,
    want_direction: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pass over the vocabulary for some tokens.

    Returns:
        Log-probs (n,), log-normalisers (n,) and, where wanted, d logp / d hidden (n, H).
    """
    dtype = accumulation_dtype(hidden.dtype)
    top = hidden.new_full((hidden.shape[0], 1), -torch.inf, dtype=dtype)
    total = torch.zeros_like(top)
    target_logit = torch.full_like(top, torch.nan)  # for a target that the head does not have
    target_slope = torch.full_like(top, transform.scale)
    expected = hidden.new_zeros(hidden.shape, dtype=dtype) if want_direction else None
    for columns in _chunks(weight, "vocabulary"):
        head = weight[columns]
        logits = transform(project(hidden, head, None if bias is None else bias[columns], dtype))
        slope = transform.slope(logits) if want_direction else None
        local = targets - columns.start
        inside = ((local >= 0) & (local < logits.shape[1])).nonzero().squeeze(1)
        target_logit[inside, 0] = logits[inside, local[inside]]
        if slope is not None:
            target_slope[inside, 0] = slope[inside, local[inside]]
        new_top = torch.maximum(top, logits.amax(1, keepdim=True))
        shrink = (top - new_top).exp_()
        weights = logits.sub_(new_top).exp_()
        total.mul_(shrink).add_(weights.sum(1, keepdim=True))
        if expected is not None:
            expected.mul_(shrink)
            expected.addmm_(weights if slope is None else weights.mul_(slope), head.to(dtype))
        top = new_top
    normaliser = top + total.log()
    direction = None
    if expected is not None:
        direction = expected.div_(total).neg_().addcmul_(target_slope, weight[targets].to(dtype))
    # Near p = 1 the two logits cancel; what is left keeps its digits.
    logps = (target_logit - top) - total.log()
    return logps.squeeze(1), normaliser.squeeze(1), direction


def _chunks(rows: Tensor, kind: Literal["tokens", "vocabulary"]) -> list[slice]:
    """The rows of hidden states or of a head, in the parts that suit their device."""
    tokens, vocabulary = CHUNKS["cpu" if rows.device.type == "cpu" else "cuda"]
    size = tokens if kind == "tokens" else vocabulary
    length = rows.shape[0]
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
