"""Means add up exactly over batches, and name where chosen and rejected responses move."""

import pytest
import torch
from accelerate import Accelerator

from alignment.objectives.base import Mean
from alignment.trainers.metrics import MeanLedger, response_metrics
from tests.objectives.batches import Reply, batch, chosen, rejected


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def value(mean: Mean) -> float:
    return float(mean.sum / mean.count)


def mean(total: float, count: float) -> Mean:
    return Mean(torch.tensor(total), torch.tensor(count))


def test_means_of_unequal_batches_are_those_of_all_values(accelerator: Accelerator):
    """(1 + 2 + 9) / 3 = 4, where the mean of the two means would be (1.5 + 9) / 2 = 5.25."""
    ledger = MeanLedger()
    ledger.add({"a": Mean.of(torch.tensor([1.0, 2.0])), "b": mean(3.0, 2.0)})
    ledger.add({"a": Mean.of(torch.tensor([9.0]))})
    reduced = ledger.reduced(accelerator)
    assert {name: value(mean) for name, mean in reduced.items()} == {"a": 4.0, "b": 1.5}


def test_a_mean_of_nothing_is_left_out(accelerator: Accelerator):
    ledger = MeanLedger()
    assert ledger.reduced(accelerator) == {}
    ledger.add({"a": mean(0.0, 0.0), "b": mean(1.0, 1.0)})
    assert set(ledger.reduced(accelerator)) == {"b"}


def test_a_cleared_ledger_starts_anew(accelerator: Accelerator):
    ledger = MeanLedger()
    ledger.add({"a": mean(1.0, 1.0)})
    ledger.clear()
    ledger.add({"a": mean(8.0, 2.0)})
    assert value(ledger.reduced(accelerator)["a"]) == 4.0


def test_a_ledger_holds_no_graph():
    weight = torch.ones(3, requires_grad=True)
    ledger = MeanLedger()
    ledger.add({"a": Mean(weight.sum(), torch.tensor(3.0))})
    assert not ledger._sums["a"].requires_grad


def test_each_side_is_reported_per_token_and_per_response():
    """Chosen: log-probs -1 - 2 - 3 = -6 over 3 tokens, reference -1.5, ratio -4.5.

    Rejected: -4 over 1 token and -2 - 2 over 2; reference -3 and -5, ratios -1 and 1.
    """
    terms = batch(
        [chosen(-1.0, -2.0, -3.0, ref=[-0.5, -0.5, -0.5]), rejected(-4.0, ref=[-3.0])],
        [rejected(-2.0, -2.0, ref=[-2.5, -2.5])],
    )
    found = {name: value(mean) for name, mean in response_metrics(terms).items()}
    expected = {
        "logps_per_token/chosen": -2.0,
        "logratios/chosen": -4.5,
        "logratios_per_token/chosen": -1.5,
        "logps_per_token/rejected": -8 / 3,
        "logratios/rejected": 0.0,
        "logratios_per_token/rejected": 0.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_without_roles_the_sides_are_the_best_and_the_worst_reward():
    """The second group's rewards are equal, so it says nothing about either side."""
    terms = batch(
        [Reply([-1.0], reward=0.5), Reply([-2.0], reward=3.0), Reply([-7.0], reward=-1.0)],
        [Reply([-50.0], reward=1.0), Reply([-60.0], reward=1.0)],
    )
    found = {name: value(mean) for name, mean in response_metrics(terms).items()}
    assert found["logps_per_token/chosen"] == pytest.approx(-2.0)
    assert found["logps_per_token/rejected"] == pytest.approx(-7.0)


def test_a_batch_of_one_side_reports_that_side_only():
    found = response_metrics(batch([chosen(-1.0)], [chosen(-3.0)]))
    assert value(found["logps_per_token/chosen"]) == -2.0
    assert not [name for name in found if "rejected" in name]
