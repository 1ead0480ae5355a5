"""The speed of a step is timed on a few layers, and time is what its parts take."""

import pytest
import torch

from alignment.core.packing import TokenGroup
from alignment.trainers import speed
from alignment.trainers.speed import Speed, measured_speed
from tests.tiny import tiny_config

GROUPS = [TokenGroup.of([[1, 2, 3, 4]] * 2, [[5, 6, 700], [8] * n], role=[1, -1]) for n in (2, 9)]


def test_time_is_that_of_the_layers_and_that_of_the_head():
    """60 of 100 operations in layers at 20 a second, 40 in the head at 10."""
    assert Speed(layers=20.0, head=10.0).seconds(100.0, 40.0) == 3.0 + 4.0


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("rank", [4, None])
def test_any_model_has_a_speed(monkeypatch: pytest.MonkeyPatch, family: str, rank: int | None):
    """Ids beyond the vocabulary of the timed model are no obstacle."""
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    device = torch.device("cpu")
    for with_reference in (True, False):
        found = measured_speed(
            tiny_config(family), GROUPS, rank, torch.float32, device, with_reference=with_reference
        )
        assert found.layers > 0
        assert found.head > 0


def test_groups_are_taken_up_to_a_bound_and_never_none():
    """Of 4 + 2 + 1 and 4 + 2 + 8 positions."""
    assert speed._batch(GROUPS, 1).num_tokens == 7
    assert speed._batch(GROUPS, 20).num_tokens == 7
    assert speed._batch(GROUPS, 21).num_tokens == 21
