from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from alignment.objectives import load_objective
from alignment.objectives.base import (
    GroupTerms,
    LossTerm,
    Mean,
    Objective,
    ObjectiveOutput,
    best_and_worst,
    group_log_softmax,
    implicit_rewards,
    mean_tokens,
    pairs,
    reward_weights,
    sum_responses,
    sum_tokens,
    twin_tokens,
)
from alignment.objectives.cpo import CPO
from tests.objectives.batches import Reply, batch, chosen, pair_batch, rejected, score_batch


@pytest.fixture
def ragged() -> GroupTerms:
    """Two groups: responses of 2 and 1 tokens, and one of 3 tokens."""
    return batch(
        [Reply([-1.0, -2.0], reward=1.0), Reply([-3.0], reward=3.0)],
        [Reply([-4.0, -5.0, -6.0], reward=2.0)],
    )


def test_tokens_are_reduced_over_their_response_and_responses_over_their_group(
    ragged: GroupTerms,
) -> None:
    """Sums -3, -3, -15; means -1.5, -3, -5; group sums of the sums -6, -15."""
    assert sum_tokens(ragged.logps, ragged).tolist() == [-3.0, -3.0, -15.0]
    assert mean_tokens(ragged.logps, ragged).tolist() == [-1.5, -3.0, -5.0]
    assert sum_responses(sum_tokens(ragged.logps, ragged), ragged).tolist() == [-6.0, -15.0]


def test_the_group_softmax_is_the_softmax_of_each_group(ragged: GroupTerms) -> None:
    scores = torch.tensor([700.0, 701.0, -900.0], dtype=torch.float64)
    expected = torch.cat([scores[:2].log_softmax(0), scores[2:].log_softmax(0)])
    assert torch.allclose(group_log_softmax(scores, ragged), expected, rtol=1e-14)


def test_reward_weights_are_the_softmax_of_the_rewards_over_tau(ragged: GroupTerms) -> None:
    """Rewards 1 and 3 at tau 2: odds e, so weights 1 / (1 + e) and e / (1 + e); then 1 alone."""
    weights = reward_weights(ragged, tau=2.0)
    assert weights.tolist() == pytest.approx([0.2689414213699951, 0.7310585786300049, 1.0])


def test_reward_weights_are_computed_in_float32_at_least(ragged: GroupTerms) -> None:
    """8 + 0.01 is 8 in bfloat16, which would leave the tie: in float32 the odds are exp(10)."""
    terms = replace(ragged, reward=torch.tensor([8.0, 8.0, 1.0], dtype=torch.bfloat16))
    weights = reward_weights(terms, tau=1e-3, first_response_bonus=0.01)
    assert weights.tolist() == pytest.approx([0.9999546, 0.0000454, 1.0], abs=1e-6)


def test_best_and_worst_skip_groups_of_equal_rewards() -> None:
    terms = score_batch(
        [[-1.0, -1.0, -1.0], [-1.0, -1.0], [-1.0]],
        [[-1.0, -1.0, -1.0], [-1.0, -1.0], [-1.0]],
        [[2.0, 5.0, 5.0], [3.0, 3.0], [9.0]],
    )
    best, worst = best_and_worst(terms)
    assert (best.tolist(), worst.tolist()) == ([1], [0])


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(ragged: GroupTerms, reward: float) -> None:
    terms = replace(ragged, reward=torch.tensor([reward, 1.0, 1.0]))
    with pytest.raises(ValueError, match="`reward` holds NaN or infinity"):
        reward_weights(terms, tau=1.0)


def test_missing_rewards_are_named(ragged: GroupTerms) -> None:
    with pytest.raises(ValueError, match="`reward` is missing"):
        reward_weights(replace(ragged, reward=None), tau=1.0)


def test_a_missing_reference_is_named(ragged: GroupTerms) -> None:
    with pytest.raises(ValueError, match="`ref_logps` is missing"):
        implicit_rewards(0.1, replace(ragged, ref_logps=None))


def test_pairs_are_found_in_either_order() -> None:
    terms = batch([chosen(-1.0), rejected(-2.0)], [rejected(-3.0), chosen(-4.0)])
    assert [side.tolist() for side in pairs(terms)] == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    "group",
    [[chosen(-1.0)], [chosen(-1.0), chosen(-2.0), rejected(-3.0)], [Reply([-1.0]), Reply([-2.0])]],
    ids=["one side", "two chosen", "no roles"],
)
def test_a_group_that_is_no_pair_is_refused(group: list[Reply]) -> None:
    with pytest.raises(ValueError, match="every group needs exactly one"):
        pairs(batch([chosen(-1.0), rejected(-2.0)], group))


def test_twin_tokens_pair_views_by_index_in_the_response() -> None:
    """Tokens 0-1 are the plain view, 2-3 the judged one; in the second group 5 and 4."""
    terms = batch(
        [Reply([-1.0, -2.0]), Reply([-3.0, -4.0], twin=0)], [Reply([-5.0], twin=1), Reply([-6.0])]
    )
    assert [index.tolist() for index in twin_tokens(terms)] == [[2, 3, 4], [0, 1, 5]]


def test_views_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the same tokens"):
        twin_tokens(batch([Reply([-1.0]), Reply([-3.0, -4.0], twin=0)]))


def test_a_batch_without_twins_has_no_twin_tokens(ragged: GroupTerms) -> None:
    judged, plain = twin_tokens(replace(ragged, twin=None))
    assert judged.numel() == plain.numel() == 0


def test_terms_of_another_shape_are_refused(ragged: GroupTerms) -> None:
    with pytest.raises(ValueError, match=r"GroupTerms.role has shape \(2,\), expected \(3,\)"):
        replace(ragged, role=torch.tensor([1, -1]))


@pytest.mark.parametrize("ids", [[0, 0, 2], [1, 1, 2], [0, 1, 0]])
def test_group_ids_that_do_not_count_up_are_refused(ragged: GroupTerms, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="group_of_response must"):
        replace(ragged, group_of_response=torch.tensor(ids))


def test_the_loss_is_the_sum_of_scaled_means_over_the_global_batch() -> None:
    """Means 6 / 4 and 2 * 5 / 10 at global counts 4 and 10: 1.5 + 1."""
    output = ObjectiveOutput(
        (
            LossTerm(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])),
            LossTerm(torch.tensor([5.0, 0.0]), torch.tensor([3.0, 0.0]), scale=2.0),
        )
    )
    assert output.counts().tolist() == [2.0, 3.0]
    assert output.loss(torch.tensor([4.0, 10.0])).item() == 2.5
    assert output.loss().item() == pytest.approx(3.0 + 10.0 / 3.0)


def test_a_term_without_counts_adds_nothing_and_is_left_out_of_an_average() -> None:
    full = LossTerm.mean(torch.tensor([2.0, 4.0], requires_grad=True))
    empty = LossTerm(torch.zeros(2), torch.zeros(2))
    assert ObjectiveOutput((full, empty)).loss().item() == 3.0
    assert ObjectiveOutput((full, empty), averages_terms=True).loss().item() == 3.0
    assert ObjectiveOutput((full, full), averages_terms=True).loss().item() == 3.0


def test_means_are_detached() -> None:
    mean = Mean.of(torch.tensor([1.0, 2.0], requires_grad=True))
    assert (mean.sum.item(), mean.count.item()) == (3.0, 2.0)
    assert not mean.sum.requires_grad


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("dpoo", {}, "did you mean `dpo`"),
        ("my_package.MyLoss", {}, "`my_package.MyLoss` cannot be imported: No module named"),
        ("alignment.objectives.dpo.Dpo", {}, "cannot be imported: module .* has no attribute"),
        ("alignment.objectives.base.Mean", {}, "is not a subclass of alignment.Objective"),
        ("dpo", {"betta": 0.1}, "did you mean `beta`"),
        ("sft", {"beta": 0.1}, "It takes: nothing"),
        ("dpo", {"beta": 0.0}, r"DPO.beta is 0.0: it must be above 0"),
        ("dpo", {"beta": "1e-4"}, r"DPO.beta is '1e-4': write a finite number"),
        ("dpo", {"beta": True}, "write a finite number"),
        ("dckd", {"top_k": 2.5}, r"DCKD.top_k is 2.5: write a whole number or null"),
        ("adpa", {"top_k": 0}, r"ADPA.top_k is 0: it must be at least 1"),
        ("nca", {"tau": float("nan")}, "NCA.tau is nan: write a finite number"),
        ("nca", {"form": "pairs"}, "NCA.form is 'pairs': choose one of 'group', 'pair'"),
        ("nca", {"form": "pair", "biased": 1}, "NCA.biased is 1: write true or false"),
        ("cpo", {"label_smoothing": 0.6}, "it must be at least 0 and at most 0.5"),
    ],
)
def test_a_bad_objective_is_refused_in_one_line(
    name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_objective(name, kwargs)
    assert "\n" not in str(error.value)


def test_an_objective_is_found_by_module_name_and_by_dotted_path() -> None:
    assert load_objective("cpo", {"beta": 0.2}) == CPO(beta=0.2)
    assert load_objective("alignment.objectives.cpo.CPO") == CPO()


@dataclass(frozen=True)
class Likelihood(Objective):
    """A user's own objective: the likelihood of every response."""

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        return ObjectiveOutput((LossTerm.mean(-sum_tokens(terms.logps, terms)),))


def test_a_class_outside_the_project_is_an_objective() -> None:
    objective = load_objective(f"{__name__}.Likelihood")
    assert objective.needs == frozenset()
    assert objective(batch([Reply([-1.0, -2.0])])).loss().item() == 3.0


def test_metrics_of_pairs_have_the_names_of_trl() -> None:
    """Rewards 0.1 * (1, -2), (-1, 3): margins 0.3 and -0.4, the first pair is right."""
    terms = pair_batch([-1.0, -5.0], [-6.0, -2.0], [-2.0, -4.0], [-4.0, -5.0])
    metrics = load_objective("dpo")(terms).metrics
    values = {name: (mean.sum / mean.count).item() for name, mean in metrics.items()}
    assert values == pytest.approx(
        {
            "rewards/chosen": 0.0,
            "rewards/rejected": 0.05,
            "rewards/margins": -0.05,
            "rewards/accuracies": 0.5,
            "logps/chosen": -3.0,
            "logps/rejected": -4.0,
        }
    )
