"""Fine-grained imitation: learning what a revision changed, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from alignment.objectives.base import (
    GroupTerms,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    check_range,
    token_marks,
    token_means,
)


@dataclass(frozen=True)
class FIGA(Objective):
    """Learns tokens that a revision brought in, and unlearns confident ones that it took out.

    The chosen side of a pair is the revision of the rejected side; what both share is not trained.

    Paper: Beyond Imitation: Leveraging Fine-grained Quality Signals for Alignment,
    arXiv 2311.04072, the loss of its code.

    Formula: ce = -log p(token); w = positive_weight on inserted or substituted tokens of the
    revision and on its end, negative_weight on deleted or substituted tokens of the original with
    ce <= threshold, else 0; loss = sum of w ce / count.

    Differs: the count is that of all marked tokens, which labels alone tell. `normalisation:
    release` divides by the number of tokens whose w is not 0, as the release does, so the scale of
    the positive part depends on how many negatives are confident; it costs one more forward pass.

    Attributes:
        positive_weight: Weight of what the revision brought in; 1 is the release's.
        negative_weight: Weight of what it took out; -0.5 is the release's.
        threshold: Cross-entropy in nats up to which a negative counts; 0.6 is the release's.
        normalisation: `marked` or `release`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs", "edits"})

    positive_weight: float = 1.0
    negative_weight: float = -0.5
    threshold: float = 0.6
    normalisation: Literal["marked", "release"] = "marked"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "positive_weight", least=0.0)
        check_range(self, "negative_weight", most=0.0)
        check_range(self, "threshold", least=0.0)

    @property
    def counts_read_policy(self) -> bool:
        """Which negatives are confident, the policy tells."""
        return self.normalisation == "release"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over tokens."""
        marks, role = token_marks(terms), terms.role[terms.response_of_token]
        cross_entropy = -terms.logps
        gained = (role > 0) & (marks > 0)
        lost = (role < 0) & (marks < 0)
        confident = lost & (cross_entropy.detach() <= self.threshold)
        weights = torch.where(confident, self.negative_weight, 0.0).to(terms.logps)
        weights = torch.where(gained, self.positive_weight, weights)
        counted = weights != 0 if self.normalisation == "release" else gained | lost
        # A masked token's log-prob may be minus infinity, which times 0 would be no number.
        losses = torch.where(weights != 0, weights * cross_entropy, 0.0)
        return ObjectiveOutput(
            terms=(token_means(losses, counted.to(weights), terms),),
            metrics={
                "figa/confident": Mean.ratio(confident.to(weights), lost.to(weights)),
                "nll_loss": Mean.ratio(
                    torch.where(gained, cross_entropy, 0.0), gained.to(cross_entropy)
                ),
            },
            parts={"token_weights": weights},
        )
