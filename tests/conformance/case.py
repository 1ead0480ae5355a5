"""One case of a vector file, and how its inputs become the flat tensors of `GroupTerms`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from alignment.core.logps import token_logps

Adapter: TypeAlias = Callable[..., Mapping[str, Any]]
"""`run(case, **params)`: see the package docstring."""

IGNORED_LABEL = -100


class TokenLogps(NamedTuple):
    """Log-probs of scored tokens, flat.

    Attributes:
        values: (n,) nats.
        rows: (n,) int64, the row of the input that a token belongs to, ascending.
    """

    values: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Case:
    """One case of a vector file.

    Attributes:
        name: Name of the case in its file.
        level: `logps` (inputs are log-probs of responses), `logits`, or one of those without loss.
        dtype: Precision of the inputs and of the computation.
        inputs: Input name -> nested lists.
        params: Hyper-parameters under the names of the reference.
        expected: What the reference produced.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        leaves: Inputs read so far as floating point, which gradients are taken for.
    """

    name: str
    level: str
    dtype: torch.dtype
    inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    expected: Mapping[str, Any]
    rtol: float
    atol: float
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def floats(self, name: str) -> Tensor:
        """The input `name` in the dtype of the case: one leaf per name, for gradients."""
        if name not in self.leaves:
            leaf = self._tensor(name, self.dtype)
            self.leaves[name] = leaf.requires_grad_(name in self.expected.get("grads", {}))
        return self.leaves[name]

    def ints(self, name: str) -> Tensor:
        """The input `name` as int64, such as labels."""
        return self._tensor(name, torch.int64)

    def bools(self, name: str) -> Tensor:
        """The input `name` as booleans."""
        return self._tensor(name, torch.bool)

    def token_logps(self, logits: str, labels: str) -> TokenLogps:
        """Log-probs of the labelled tokens, through the project's own head.

        Args:
            logits: Name of an input (..., T, V); leading dimensions are flattened into rows.
            labels: Name of an input (..., T), unshifted: the logit at t scores the label at t + 1.
        """
        scores, targets = self.floats(logits), self.ints(labels)
        if scores.shape[:-1] != targets.shape:
            raise ValueError(
                f"inputs.{logits} {tuple(scores.shape)} and inputs.{labels} {tuple(targets.shape)} "
                "disagree: logits need one more dimension, the vocabulary"
            )
        return score_tokens(scores.flatten(0, -3), targets.flatten(0, -2))

    def _tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self.inputs:
            raise ValueError(f"inputs.{name} is missing; the case has {', '.join(self.inputs)}")
        return torch.tensor(self.inputs[name], dtype=dtype)


def score_tokens(logits: Tensor, labels: Tensor) -> TokenLogps:
    """Log-probs of the labelled tokens of (B, T, V) `logits`; hidden = logits, head = identity.

    Args:
        logits: (B, T, V).
        labels: (B, T) int64, unshifted, -100 where a token is not scored.
    """
    rows, steps = torch.nonzero(labels[:, 1:] != IGNORED_LABEL, as_tuple=True)
    head = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return TokenLogps(token_logps(logits[rows, steps], head, labels[rows, steps + 1]), rows)


def merge_responses(parts: Sequence[TokenLogps]) -> tuple[Tensor, Tensor]:
    """Puts tokens of several inputs in the order of their responses.

    Args:
        parts: Tokens whose `rows` are already response indices of the batch.

    Returns:
        `logps` (N,) and `response_of_token` (N,), ascending by response.
    """
    rows = torch.cat([part.rows for part in parts])
    order = rows.argsort(stable=True)
    return torch.cat([part.values for part in parts])[order], rows[order]
