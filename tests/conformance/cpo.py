"""Vectors of CPO, SimPO, CPO-SimPO and AlphaPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.objectives import load_objective
from alignment.objectives.base import Objective, mean_tokens, sum_tokens
from alignment.objectives.simpo import SimPO
from tests.conformance.case import Adapter, Case
from tests.conformance.pairs import pair_terms, pair_values


def _run(default_loss: str) -> Adapter:
    """An adapter with TRL's defaults for what a case leaves out."""

    def run(  # noqa: PLR0913 - one argument for each param of the format
        case: Case,
        *,
        beta: float = 0.1,
        loss_type: str = default_loss,
        cpo_alpha: float = 1.0,
        simpo_gamma: float = 0.5,
        label_smoothing: float = 0.0,
        alpha: float = 0.0,
    ) -> Mapping[str, Any]:
        if loss_type == "alphapo":
            loss_type, cpo_alpha = "simpo", 0.0
        if case.level == "logps":
            # Whole responses stand for one token at this level: there is no token mean to take.
            cpo_alpha = 0.0
        objective: Objective = load_objective(
            "cpo",
            {
                "beta": beta,
                "loss_type": loss_type,
                "cpo_alpha": cpo_alpha,
                "simpo_gamma": simpo_gamma,
                "label_smoothing": label_smoothing,
                "alpha": alpha,
            },
        )
        if loss_type == "simpo" and cpo_alpha == label_smoothing == alpha == 0:
            # Plain SimPO has a file of its own; a test holds `cpo` to the same values.
            objective = SimPO(beta=beta, gamma=simpo_gamma)
        terms = pair_terms(case, reference=False)
        values = pair_values(case, objective, terms)
        reduce_tokens = mean_tokens if loss_type in ("ipo", "simpo") else sum_tokens
        logps = reduce_tokens(terms.logps, terms)
        return {
            **values,
            "policy_chosen_logps": logps[0::2],
            "policy_rejected_logps": logps[1::2],
            "nll_loss": values["metrics"]["nll_loss"] if cpo_alpha else 0.0,
        }

    return run


OBJECTIVES = {"cpo": _run("sigmoid"), "simpo": _run("simpo")}
