"""DistiLLM-2: contrastive distillation, one divergence for each side of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.objectives.base import (
    DivergenceKind,
    DivergenceSpec,
    GroupTerms,
    LogpsUse,
    LossTerm,
    Mean,
    Need,
    Objective,
    ObjectiveOutput,
    Progress,
    check_range,
    mean_divergences,
    mean_tokens,
    pairs,
    role_metrics,
    sum_tokens,
    teacher_mean_logps,
)

FLOOR = 0.01
"""Least skew that the adaptive rule goes down to."""


@dataclass(frozen=True)
class DistiLLM2(Objective):
    """Pulls the student up on the teacher's responses (chosen), and down on its own (rejected).

    Paper: DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs, arXiv 2503.07067,
    its loss with the curricula for alpha and beta.

    Formula: loss = 1/2 ((1 - beta) SKL + beta SRKL), the mean over pairs; SKL = mean_t KL(p, a p +
    (1-a) q) on chosen, SRKL = mean_t KL(q, (1-a) p + a q) on rejected, p teacher and q student;
    a = clip(1 - (1-a0) m / gap, 0.01, a0), gap = p(y) - q(y) on chosen and q(y) - p(y) on rejected;
    beta = clip(e/E + tau/T, beta0, 1).

    Differs: p(y) and q(y) are geometric means per token, as in the release: whole sequences have
    probability 0 in floating point. m is the mean gap of the first `anchor_steps` steps, as the
    release means it, and 1e-5 is added to a gap. e/E + tau/T is read as the share of all optimiser
    steps that is done.
    `form: release` is the authors' code: the loss is 4 times as large, the student inside SRKL's
    mixture is constant, and a carries gradient into q(y) where the clip is inactive. In `paper` q
    varies inside both mixtures, a is constant, and it stays at a0 for the whole first epoch.
    `curriculum: release` is beta = (1 + 0.5 min(1, 2 step / max_steps)) / 2. The authors' runs have
    both curricula off: `form: release, skew: fixed, curriculum: off`.

    Attributes:
        skew: `adaptive`, or `fixed` at a0.
        curriculum: How beta grows; `off` leaves it at beta0.
        form: The paper's loss or that of the authors' code.
        alpha_chosen: a0 of chosen responses.
        alpha_rejected: a0 of rejected responses.
        beta0: Least weight of the rejected side.
        anchor_steps: Optimiser steps that m is taken from; TRL's default logging interval, as the
            release takes the first logged value.
        epochs_before: Epochs that were trained by earlier runs, where each epoch of a loop is a
            run on new samples; the curricula go on from there.
        epochs_in_all: Epochs of that loop; None where this run is the whole training.
        anchor_chosen: m of chosen responses from an earlier run; None takes it from this one.
        anchor_rejected: m of rejected responses, likewise.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "pairs"})

    skew: Literal["fixed", "adaptive"] = "adaptive"
    curriculum: Literal["off", "paper", "release"] = "paper"
    form: Literal["paper", "release"] = "paper"
    alpha_chosen: float = 0.1
    alpha_rejected: float = 0.1
    beta0: float = 0.5
    anchor_steps: int = 10
    epochs_before: int = 0
    epochs_in_all: int | None = None
    anchor_chosen: float | None = None
    anchor_rejected: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        least = FLOOR if self.skew == "adaptive" else 0.0
        check_range(self, "alpha_chosen", least=least, most=0.99)
        check_range(self, "alpha_rejected", least=least, most=0.99)
        check_range(self, "beta0", least=0.0, most=1.0)
        check_range(self, "anchor_steps", least=1)
        check_range(self, "epochs_before", least=0)
        if self.epochs_in_all is not None:
            check_range(self, "epochs_in_all", least=self.epochs_before + 1)
        if (self.anchor_chosen is None) != (self.anchor_rejected is None):
            raise ValueError("anchor_chosen and anchor_rejected go together: set both or neither")

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """The skewed forward KL of chosen and the skewed reverse KL of rejected responses."""
        skews = self._skews(terms)
        reverse: DivergenceKind = (
            "skewed_reverse_kl" if self.form == "paper" else "anchored_reverse_kl"
        )
        return (
            DivergenceSpec("skewed_forward_kl", skews, terms.role > 0),
            DivergenceSpec(reverse, skews, terms.role < 0),
        )

    def logps_use(self, terms: GroupTerms) -> LogpsUse:
        """Where the skew adapts: not before there are anchors, nor in the paper's first epoch."""
        if not self._anchors(terms):
            return "logged"
        return "constant" if self.form == "paper" else "gradient"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """One mean over pairs."""
        chosen, rejected = pairs(terms)
        forward, reverse = mean_divergences(terms)  # (R,)
        beta = self._beta(terms.progress)
        scale = 0.5 if self.form == "paper" else 2.0
        losses = scale * ((1 - beta) * forward[chosen] + beta * reverse[rejected])  # (G,)
        skews, gaps = self._skews(terms).detach(), self._gaps(terms).detach()
        return ObjectiveOutput(
            terms=(LossTerm.mean(losses),),
            metrics={
                **role_metrics("divergences", forward + reverse, terms),
                **role_metrics("gaps", gaps, terms),
                **role_metrics("skews", skews, terms),
                **role_metrics("logps", sum_tokens(terms.logps, terms), terms),
                "beta": Mean.of(losses.new_tensor(beta)),
            },
            parts={
                "per_example": losses,
                "divergences": forward + reverse,
                "gaps": gaps,
                "skews": skews,
                "beta": losses.new_tensor(beta),
            },
            statistics=role_metrics("gaps", gaps, terms) if self.skew == "adaptive" else {},
        )

    def update(
        self, state: Mapping[str, Tensor], statistics: Mapping[str, Mean]
    ) -> Mapping[str, Tensor]:
        """Averages the gaps of the first steps, then freezes them as the anchors m."""
        if self.skew == "fixed" or self.anchor_chosen is not None or "anchors/chosen" in state:
            return state
        steps = state.get("steps", torch.zeros(())) + 1
        sums = {}
        for key in ("gaps/chosen", "gaps/rejected"):
            added = torch.stack([statistics[key].sum, statistics[key].count])  # (2,)
            sums[key] = added + state.get(key, torch.zeros(2)).to(added)
        if steps < self.anchor_steps:
            return {"steps": steps, **sums}
        return {key.replace("gaps", "anchors"): pair[0] / pair[1] for key, pair in sums.items()}

    def _beta(self, progress: Progress) -> float:
        done = progress.step / progress.max_steps
        if self.epochs_in_all is not None:
            done = (self.epochs_before + done) / self.epochs_in_all
        if self.curriculum == "release":
            return (1 + 0.5 * min(1.0, 2 * done)) / 2
        return self.beta0 if self.curriculum == "off" else min(1.0, max(self.beta0, done))

    def _gaps(self, terms: GroupTerms) -> Tensor:
        """(R,) by how much the probability of a response is higher under the model it is from."""
        mean_logps = mean_tokens(terms.logps, terms)
        return terms.role * (teacher_mean_logps(terms).exp() - mean_logps.exp())

    def _anchors(self, terms: GroupTerms) -> Mapping[int, Tensor]:
        """The mean gap m that each role's skew adapts to, where it adapts."""
        epoch = self.epochs_before + terms.progress.epoch
        if self.skew == "fixed" or (self.form == "paper" and epoch < 1):
            return {}
        if self.anchor_chosen is not None and self.anchor_rejected is not None:
            new = terms.logps.new_tensor
            return {1: new(self.anchor_chosen), -1: new(self.anchor_rejected)}
        known = {1: terms.state.get("anchors/chosen"), -1: terms.state.get("anchors/rejected")}
        return {role: anchor for role, anchor in known.items() if anchor is not None}

    def _skews(self, terms: GroupTerms) -> Tensor:
        """(R,) mixture weights; in the release's form they carry gradient."""
        bases = {1: self.alpha_chosen, -1: self.alpha_rejected}
        skews = terms.logps.new_full((terms.num_responses,), self.alpha_chosen)
        skews = skews.where(terms.role > 0, self.alpha_rejected)
        for role, anchor in self._anchors(terms).items():
            gaps, base = self._gaps(terms), bases[role]
            ratio = anchor.to(gaps) / (gaps + 1e-5)
            adapted = (1 - (1 - base) * ratio).clip(FLOOR, base)
            skews = torch.where(terms.role == role, adapted, skews)
        return skews.detach() if self.form == "paper" else skews
