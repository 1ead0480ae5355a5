"""What every objective must keep to, so that the trainer never asks which one is running."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from alignment.objectives import available_objectives, load_objective
from alignment.objectives.base import (
    GroupTerms,
    Objective,
)
from tests.objectives.batches import Reply, batch

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("apo", {"variant": "down"}),
    ("apo", {"form": "unpaired", "desirable_weight": 1.5, "undesirable_weight": 0.5}),
    ("nca", {"form": "pair"}),
    ("nca", {"form": "pair", "biased": True}),
    ("infonca", {"form": "pair"}),
    ("cpo", {"loss_type": "hinge"}),
    ("cpo", {"loss_type": "ipo"}),
    ("cpo", {"loss_type": "simpo", "alpha": 0.25, "label_smoothing": 0.1}),
    ("cut", {"normalisation": "release", "dynamic_weight": "constant"}),
    ("d2o", {"references": "two"}),
    ("ulma", {"demonstration": "pointwise_dpo"}),
    ("ulma", {"demonstration": "token_mean", "preference": "continuous"}),
    ("clha", {"margin": 0.1, "order": "data"}),
    ("figa", {"normalisation": "release"}),
    ("unlikelihood", {"score_threshold": 0.5}),
    ("unlikelihood", {"weighting": "mixture"}),
    ("awr", {"baseline": "fixed", "fixed_value": -0.5, "alpha": 1.0}),
    ("adpa", {"importance_sampling": "sequence", "kl_penalty_weight": 0.1, "top_k": 5}),
    ("ampo", {"length_normalised": True, "beta": 2.0, "gamma": 1.0}),
    *[(name, {}) for name in available_objectives()],
]


def _words(value: tuple[str, dict[str, Any]]) -> str:
    name, kwargs = value
    return "-".join([name, *(f"{key}={kwarg}" for key, kwarg in kwargs.items())])


@pytest.fixture(params=VARIANTS, ids=_words)
def objective(request: pytest.FixtureRequest) -> Objective:
    name, kwargs = request.param
    return load_objective(name, kwargs)


def make_groups(objective: Objective, seed: int = 0) -> list[list[Reply]]:
    """Three groups of the kind that the objective reads, with ragged lengths."""
    rng = random.Random(seed)

    def reply(length: int, **labels: Any) -> Reply:
        policy, ref, teacher, second = (
            [rng.uniform(-3, -0.1) for _ in range(length)] for _ in range(4)
        )
        return Reply(policy, ref, teacher, second_ref=second, **labels)

    def sided(length: int, role: int) -> Reply:
        """One side of a pair, the better one with marks +1 and the worse one with marks -1."""
        return reply(length, role=role, mark=[role * (k % 2) for k in range(1, length + 1)])

    if "one_rejected" in objective.needs:
        return [[sided(1 + k, 1) for k in range(size)] + [sided(2, -1)] for size in (1, 3, 2)]
    if objective.needs & {"scores", "spans"}:
        return [
            [
                reply(
                    length,
                    mark=[-(k % 2) for k in range(length)],
                    score=[rng.random() for _ in range(length)],
                )
            ]
            for length in (4, 2, 3)
        ]
    if "edits" in objective.needs:
        return [[sided(length, 1), sided(4 - length, -1)] for length in (1, 3, 2)]
    if "twin" in objective.needs:
        return [
            [reply(3), reply(3, twin=0)],
            [reply(2)],
            [reply(5), reply(5, twin=0)],
        ]
    if "aspects" in objective.needs:
        return [
            [reply(1 + k, aspects=(rng.random(), rng.random())) for k in range(size)]
            for size in (4, 2, 3)
        ]
    if "reward" in objective.needs:
        return [[reply(1 + k, reward=rng.random()) for k in range(size)] for size in (4, 1, 3)]
    return [[reply(length, role=1), reply(4 - length, role=-1)] for length in (1, 3, 2)]


def with_divergences(objective: Objective, terms: GroupTerms) -> GroupTerms:
    """The terms with made-up divergences, which depend on a token alone."""
    specs = objective.divergences(terms)
    if not specs:
        return terms
    columns = [-(1 + column) * terms.logps for column in range(len(specs))]
    return replace(terms, divergences=torch.stack(columns, dim=1))


def make_terms(objective: Objective, groups: Sequence[Sequence[Reply]]) -> GroupTerms:
    return with_divergences(objective, batch(*groups))


def test_counts_depend_on_labels_only_and_log_probs_of_zero_are_accepted(
    objective: Objective,
) -> None:
    terms = make_terms(objective, make_groups(objective))
    zeros = torch.zeros_like(terms.logps, requires_grad=False)
    blank = replace(terms, logps=zeros, ref_logps=zeros, teacher_logps=zeros)
    with torch.no_grad():
        counts = objective(with_divergences(objective, blank)).counts()
    if not objective.counts_read_policy:
        assert counts.tolist() == objective(terms).counts().tolist()
    assert counts.sum() > 0


def test_shares_of_single_groups_add_up_to_the_loss_of_the_batch(objective: Objective) -> None:
    groups = make_groups(objective)
    output = objective(make_terms(objective, groups))
    counts = output.counts()
    shares = [objective(make_terms(objective, [group])).loss(counts) for group in groups]
    assert sum(share.item() for share in shares) == pytest.approx(output.loss().item(), rel=1e-12)


def test_the_initial_loss_is_the_loss_where_policy_equals_reference(objective: Objective) -> None:
    groups = [[replace(r, ref=None) for r in group] for group in make_groups(objective)]
    terms = make_terms(objective, groups)
    predicted = objective.initial_loss(terms)
    if predicted is None:
        moved = [
            [replace(r, logps=[2 * p for p in r.logps], values=[1.0] * len(r.logps)) for r in group]
            for group in groups
        ]
        other = make_terms(objective, moved)
        assert objective(terms).loss().item() != pytest.approx(objective(other).loss().item())
    else:
        assert objective(terms).loss().item() == pytest.approx(predicted, rel=1e-12)


def test_metrics_and_statistics_carry_no_gradient(objective: Objective) -> None:
    output = objective(make_terms(objective, make_groups(objective)))
    for mean in (*output.metrics.values(), *output.statistics.values()):
        assert not mean.sum.requires_grad
        assert not mean.count.requires_grad


@pytest.mark.gpu
def test_the_loss_and_its_gradient_are_the_same_on_cuda(objective: Objective) -> None:
    terms = make_terms(objective, make_groups(objective))
    moved: dict[str, Any] = {
        known.name: value.detach().cuda()
        for known in fields(terms)
        if isinstance(value := getattr(terms, known.name), torch.Tensor)
    }
    moved["logps"].requires_grad_()
    results = []
    for version in (terms, with_divergences(objective, GroupTerms(**moved))):
        loss = objective(version).loss()
        (grad,) = torch.autograd.grad(loss, version.logps)
        results.append([loss.item(), *grad.tolist()])
    assert results[1] == pytest.approx(results[0], rel=1e-12)


def test_the_loss_carries_gradient(objective: Objective) -> None:
    terms = make_terms(objective, make_groups(objective))
    assert terms.values is not None
    leaves = (terms.logps, terms.values.requires_grad_())
    grads = torch.autograd.grad(objective(terms).loss(), leaves, materialize_grads=True)
    assert all(grad.isfinite().all() for grad in grads)
    assert sum(grad.abs().sum() for grad in grads) > 0
