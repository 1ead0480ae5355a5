"""Checks before the first step: the layout computes what it should, and policy equals reference.

Most silent bugs of preference trainers break one of these two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from alignment.core.packing import Layout, PackedBatch, TokenGroup, pack
from alignment.core.scoring import Scorer, evaluating, policy_logps

LOGP_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Nats per token within which two layouts agree; half precision rounds attention differently."""

RATIO_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Nats per token within which policy and reference agree before the first step."""

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Share of the loss within which the first step has the value that labels alone predict."""


def layout_difference(
    model: nn.Module, group: TokenGroup, layout: Layout, pad_token_id: int
) -> float:
    """Largest difference in nats between a group's log-probs in a layout and in the plain one."""
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        found, plain = (
            policy_logps(model, pack([group], kind, pad_token_id).to(device))
            for kind in (layout, "plain")
        )
    return float((found - plain).abs().max())


def head_difference(model: nn.Module, group: TokenGroup, pad_token_id: int) -> float:
    """Difference in nats between our log-prob of a token and that of the model's own logits.

    It shows an architecture that does more to its logits than `HeadTransform` knows. The token is
    one of the first of the group, so that few logits are made.
    """
    device = next(model.parameters()).device
    *context, token = [*group.prefix, *group.contexts[0], *group.responses[0]][:8]
    alone = TokenGroup.of([context], [[token]], role=[0])
    with torch.no_grad(), evaluating(model):
        (ours,) = policy_logps(model, pack([alone], "plain", pad_token_id).to(device))
        logits = model(input_ids=torch.tensor([context], device=device)).logits[0, -1]
    return float((ours - logits.to(ours.dtype).log_softmax(-1)[token]).abs())


@dataclass(frozen=True)
class Preflight:
    """What the first batch shows before training.

    Attributes:
        largest_ratio: Largest |log policy - log reference| of any token, nats.
        loss: The objective's value.
        expected_loss: The value that labels alone predict; None where the objective predicts none.
    """

    largest_ratio: float
    loss: float
    expected_loss: float | None

    @classmethod
    def of(cls, scorer: Scorer, model: nn.Module, batch: PackedBatch) -> Preflight:
        """Scores one batch without gradient."""
        with torch.no_grad(), evaluating(model):
            terms = scorer(model, batch)
            output = scorer.objective(terms)
        ratios = terms.logps if terms.ref_logps is None else terms.logps - terms.ref_logps
        return cls(
            largest_ratio=float(ratios.abs().max()),
            loss=float(output.loss()),
            expected_loss=scorer.objective.initial_loss(terms),
        )

    def fault(self, dtype: torch.dtype) -> str | None:
        """What is inconsistent, in one line; None where all is well.

        Args:
            dtype: The precision the model computes in.
        """
        bound = RATIO_TOLERANCE.get(dtype, RATIO_TOLERANCE[torch.float32])
        if not self.largest_ratio <= bound:
            return (
                "before the first step the policy should equal the reference, but a token's "
                f"log-ratio is {self.largest_ratio:.3g} nats (bound {bound:g} in {dtype}): the "
                "adapter is not fresh or the reference is another model; mend it, or set "
                "`preflight: false` where this is meant"
            )
        expected = self.expected_loss
        if expected is not None:
            slack = LOSS_TOLERANCE.get(dtype, LOSS_TOLERANCE[torch.float32])
            if not abs(self.loss - expected) <= slack * max(1.0, abs(expected)):
                return (
                    f"the first loss is {self.loss:.6f}, but with policy = reference it must be "
                    f"{expected:.6f}: the objective and its labels do not fit"
                )
        return None
