"""What the benchmarks measure on: lengths, and how tokens are counted."""

import numpy as np
import pytest

from alignment.core.packing import TokenGroup, pack
from benchmarks._data import (
    MAX_LENGTH,
    PRESETS,
    Lengths,
    as_dataset,
    drawn_groups,
    longest_row,
    padded_tokens,
    sorted_batches,
    unique_tokens,
)


def group(prompt: int, *responses: int) -> TokenGroup:
    ids = [[7] * length for length in responses]
    return TokenGroup.of([[5] * prompt] * len(ids), ids, role=[1, -1] + [0] * (len(ids) - 2))


def test_drawn_lengths_have_the_median_and_the_bounds_that_the_table_says():
    drawn = Lengths(100, 0.5, least=50, most=200).draw(np.random.default_rng(0), 4000)
    assert np.median(drawn) == pytest.approx(100, rel=0.03)
    assert (min(drawn), max(drawn)) == (50, 200)


def test_half_of_the_logarithms_lie_within_two_thirds_of_the_spread():
    """A normal variable has its quartiles at 0.6745 standard deviations."""
    drawn = Lengths(1000, 0.4, most=100_000).draw(np.random.default_rng(0), 8000)
    quartile = np.percentile(np.log(drawn), 75)
    assert quartile - np.log(1000) == pytest.approx(0.6745 * 0.4, abs=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_exceeds_what_the_trainers_take(name: str):
    preset = PRESETS[name]
    assert preset.prompt.most + preset.response.most <= MAX_LENGTH or preset.prompt.spread == 0
    assert max(map(longest_row, drawn_groups(preset, 2, 256, seed=0))) <= MAX_LENGTH


def test_lengths_that_are_given_are_kept():
    (drawn,) = drawn_groups(PRESETS["512x128"], 2, 1, seed=0)
    assert (len(drawn.prefix), *map(len, drawn.responses)) == (512, 128, 128)


def test_the_same_seed_draws_the_same_groups():
    preset = PRESETS["hh"]
    first, again, other = (drawn_groups(preset, 4, 8, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_pairs_have_roles_and_larger_groups_rewards():
    (pair,) = drawn_groups(PRESETS["hh"], 2, 1, seed=0)
    (scored,) = drawn_groups(PRESETS["hh"], 4, 1, seed=0)
    assert (pair.role, pair.reward) == ([1, -1], None)
    assert scored.reward is not None
    assert len(scored.reward) == 4


def test_tokens_are_counted_as_each_side_computes_them():
    """Prompt 5, responses 3 and 6; prompt 2, responses 4 and 1.

    Unique, without the last token of a response: 5 + 2 + 5 and 2 + 3 + 0, together 17. Padded:
    four rows as long as the longest, 5 + 6, together 44.
    """
    groups = [group(5, 3, 6), group(2, 4, 1)]
    assert unique_tokens(groups) == 17
    assert padded_tokens(groups) == 44


def test_unique_tokens_are_those_that_a_packed_batch_holds():
    groups = drawn_groups(PRESETS["hh"], 3, 5, seed=1)
    assert unique_tokens(groups) == pack(groups, "shared", 0).num_tokens


def test_sorted_batches_span_the_pool_from_short_to_long():
    """Eight groups of lengths 1 to 8 with a response of 1, two batches of two.

    The batches lie around the first and the third quarter: 2, 3 and 6, 7; rows are one longer.
    """
    pool = [group(length, 1, 1) for length in (5, 8, 1, 3, 7, 2, 6, 4)]
    batches = sorted_batches(pool, 2, 2)
    assert [[longest_row(g) for g in batch] for batch in batches] == [[3, 4], [7, 8]]


def test_no_group_is_in_two_batches():
    pool = drawn_groups(PRESETS["hh"], 2, 24, seed=0)
    taken = [g.origin for batch in sorted_batches(pool, 4, 6) for g in batch]
    assert len(set(taken)) == 24


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="3 groups do not make 2 batches of 2"):
        sorted_batches([group(1, 1, 1)] * 3, 2, 2)


def test_groups_come_back_from_the_data_set_as_they_went_in():
    groups = drawn_groups(PRESETS["hh"], 3, 2, seed=0)
    stored = as_dataset(groups)
    for index, original in enumerate(groups):
        found = stored[index]
        assert (found.prefix, found.responses) == (original.prefix, original.responses)
        assert found.reward == pytest.approx(original.reward)
    assert stored.lengths("shared").tolist() == [g.lengths()[0] for g in groups]
