"""Groups are laid out so that every response can be scored as though it stood alone."""

import random
from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.core.packing import (
    PADDING,
    Layout,
    PackedBatch,
    TokenGroup,
    best_row_length,
    fill_rows,
    group_from_record,
    pack,
)
from tests.core.batches import ragged_groups, token_group

PAD = 0
LAYOUTS: tuple[Layout, ...] = ("shared", "plain")


def branches(groups: list[TokenGroup]) -> list[tuple[list[int], list[int]]]:
    """The whole context and the response of every response, in order."""
    return [
        ([*group.prefix, *context], list(response))
        for group in groups
        for context, response in zip(group.contexts, group.responses, strict=True)
    ]


def path(batch: PackedBatch, flat: int) -> list[int]:
    """Flat indices of the prefix and the branch up to a position, in order."""
    row, end = divmod(flat, batch.input_ids.shape[1])
    sequence, branch = batch.sequence[row], batch.branch[row]
    on_path = (sequence == sequence[end]) & ((branch == 0) | (branch == branch[end]))
    (columns,) = torch.nonzero(on_path[: end + 1], as_tuple=True)
    return [row * batch.input_ids.shape[1] + int(column) for column in columns]


# ---- Groups of ids ----


def test_the_prefix_is_what_all_contexts_begin_with():
    group = TokenGroup.of([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3]], [[7], [8], [9]], role=[0] * 3)
    assert group.prefix == [1, 2, 3]
    assert group.contexts == [[4], [5, 6], []]


def test_equal_contexts_are_all_prefix():
    group = TokenGroup.of([[1, 2], [1, 2]], [[3], [4]], role=[1, -1])
    assert (group.prefix, group.contexts) == ([1, 2], [[], []])


def test_contexts_may_share_nothing():
    group = TokenGroup.of([[1, 2], [3]], [[3], [4]], role=[1, -1])
    assert (group.prefix, group.contexts) == ([], [[1, 2], [3]])


def test_the_prefix_never_reaches_into_a_response():
    group = TokenGroup.of([[1], [1]], [[2, 3], [2, 4]], role=[1, -1])
    assert group.prefix == [1]


@pytest.mark.parametrize(
    ("contexts", "responses"), [([[1], []], [[2], [3]]), ([[1], [1]], [[2], []])]
)
def test_every_response_needs_a_token_and_one_before_it(
    contexts: list[list[int]], responses: list[list[int]]
):
    with pytest.raises(ValueError, match="needs one token"):
        TokenGroup.of(contexts, responses, role=[0, 0])


def test_a_group_survives_being_stored_as_a_record():
    (group,) = [g for g in ragged_groups() if any(g.contexts) and len(g.responses) == 3]
    group = replace(group, reward=[1.0, 0.5, 0.0], twin=[-1, 0, -1], origin="a:1")
    assert group_from_record({**asdict(group), "notices": [], "size": 3}) == group


# ---- Layouts ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_token_is_predicted_from_its_own_context_alone(layout: Layout):
    """Walking from the predicting position back over its branch and prefix gives exactly the
    tokens that stand before the target in the response's own text, at positions 0, 1, 2...
    """
    groups = ragged_groups()
    batch = pack(groups, layout, PAD)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    token = 0
    for index, (context, response) in enumerate(branches(groups)):
        for place, target in enumerate(response):
            assert batch.targets[token] == target
            assert batch.response_of_token[token] == index
            walked = path(batch, int(batch.predicts[token]))
            assert ids[walked].tolist() == [*context, *response[:place]]
            assert positions[walked].tolist() == list(range(len(context) + place))
            token += 1
    assert token == len(batch.targets) == len(batch.predicts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_many_positions_are_computed_as_a_group_says(layout: Layout):
    for group in ragged_groups():
        shared, plain = group.lengths()
        batch = pack([group], layout, PAD)
        assert batch.num_tokens == (shared if layout == "shared" else plain)


@pytest.mark.parametrize(
    ("contexts", "responses", "shared", "plain"),
    [
        ([[1, 2, 3]] * 2, [[4, 5], [6, 7, 8]], 3 + 1 + 2, 4 + 5),
        ([[1, 2, 3], [1, 2, 4]], [[5], [6]], 2 + 1 + 1, 3 + 3),
        ([[1]], [[2]], 1, 1),
    ],
)
def test_the_last_token_of_a_response_is_not_computed(
    contexts: list[list[int]], responses: list[list[int]], shared: int, plain: int
):
    group = TokenGroup.of(contexts, responses, role=[0] * len(responses))
    assert group.lengths() == (shared, plain)


def test_padding_belongs_to_no_sequence_and_fills_the_end_of_rows():
    batch = pack(ragged_groups(), "plain", 7)
    padding = batch.sequence == PADDING
    assert padding.any()
    assert (batch.input_ids[padding] == 7).all()
    assert (batch.position_ids[padding] == 0).all()
    assert (padding.int().diff(dim=1) >= 0).all()
    assert not padding.flatten()[batch.predicts].any()


def test_the_plain_layout_has_one_row_per_response():
    groups = ragged_groups()
    batch = pack(groups, "plain", PAD)
    assert batch.input_ids.shape[0] == len(branches(groups))
    assert batch.one_sequence_per_row


def test_only_rows_of_one_unshared_sequence_count_as_such():
    one = token_group(random.Random(0), 4, [3])
    pair = token_group(random.Random(0), 4, [3, 3])
    assert pack([one], "shared", PAD).one_sequence_per_row
    assert not pack([pair], "shared", PAD).one_sequence_per_row
    short = token_group(random.Random(0), 1, [2])
    together = pack([one, short], "shared", PAD)
    assert together.input_ids.shape[0] == 1
    assert not together.one_sequence_per_row


@pytest.mark.parametrize("layout", LAYOUTS)
def test_responses_keep_the_order_of_the_groups_whatever_rows_they_land_in(layout: Layout):
    rng = random.Random(1)
    for _ in range(30):
        groups = [token_group(rng, rng.randint(1, 40), [rng.randint(1, 9)] * 2) for _ in range(6)]
        batch = pack(groups, layout, PAD)
        assert batch.targets.tolist() == [t for _, response in branches(groups) for t in response]
        assert batch.group_of_response.tolist() == [g for g in range(6) for _ in range(2)]


def labelled() -> list[TokenGroup]:
    rng = random.Random(0)
    first: dict[str, Any] = {
        "role": [1, -1],
        "reward": [0.5, 0.25],
        "weight": [2.0, 3.0],
        "ref_logps": [[-0.5], [-1.5, -2.5]],
    }
    second: dict[str, Any] = {
        "role": [-1, -1, 1],
        "reward": [3.0, 2.0, 1.0],
        "weight": [1.0, 1.0, 0.5],
        "twin": [-1, 0, -1],
        "ref_logps": [[-3.0, -4.0], [-5.0, -6.0], [-7.0]],
    }
    return [
        token_group(rng, 3, [1, 2], **first, origin="a:1"),
        token_group(rng, 2, [2, 2, 1], contexts=[0, 4, 0], **second, origin="a:2"),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_follow_their_responses(layout: Layout):
    batch = pack(labelled(), layout, PAD)
    assert batch.role.tolist() == [1, -1, -1, -1, 1]
    assert batch.reward is not None
    assert batch.reward.tolist() == [0.5, 0.25, 3.0, 2.0, 1.0]
    assert batch.weight is not None
    assert batch.weight.tolist() == [2.0, 3.0, 1.0, 1.0, 0.5]
    assert batch.ref_logps is not None
    assert batch.ref_logps.tolist() == [-0.5, -1.5, -2.5, -3.0, -4.0, -5.0, -6.0, -7.0]
    assert batch.origins == ("a:1", "a:2")
    assert batch.layout == layout


def test_twins_count_over_the_batch():
    """The second group's judged view is response 3; its plain view is the group's first, 2."""
    batch = pack(labelled(), "shared", PAD)
    assert batch.twin is not None
    assert batch.twin.tolist() == [-1, -1, -1, 2, -1]


def test_labels_that_no_group_has_are_absent():
    batch = pack(ragged_groups(), "shared", PAD)
    assert (batch.reward, batch.weight, batch.twin, batch.ref_logps) == (None,) * 4


@pytest.mark.parametrize("name", ["reward", "weight", "ref_logps"])
def test_a_label_that_only_some_groups_have_is_refused(name: str):
    first, second = labelled()
    missing: dict[str, Any] = {name: None}
    without = replace(second, **missing)
    with pytest.raises(ValueError, match="carry a label that others lack"):
        pack([first, without], "shared", PAD)


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest():
    batch = pack(labelled(), "plain", PAD, real=False)
    moved = batch.to("meta")
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, Tensor):
            assert after.device.type == "meta"
            assert after.shape == before.shape
        else:
            assert after == before
    assert not moved.real


# ---- Rows ----


def test_rows_hold_every_item_once_and_none_beyond_capacity():
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randint(1, 50) for _ in range(rng.randint(1, 20))]
        capacity = max(lengths) + rng.randint(0, 60)
        rows = fill_rows(lengths, capacity)
        assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
        assert all(sum(lengths[item] for item in row) <= capacity for row in rows)
        # Two rows that fit into one would have been one.
        totals = sorted(sum(lengths[item] for item in row) for row in rows)
        assert all(first + second > capacity for first, second in pairwise(totals))


def test_an_item_goes_where_it_leaves_the_least_room():
    """Capacity 10: 7 and 6 open rows with room 3 and 4; 3 fits both and fills the first."""
    assert fill_rows([3, 7, 6], 10) == [[1, 0], [2]]
    assert fill_rows([3, 6, 7], 10) == [[2, 0], [1]]


def test_equal_sequences_share_one_row_until_masks_cost_more():
    """Four of 100 on one row of 400 cost 400 (1 + 400 c); on rows of their own 400 (1 + 100 c)."""
    assert best_row_length([100] * 4, attention_cost=1.0) == 100
    assert best_row_length([100, 99, 98, 50], attention_cost=0.0) == 347


def test_the_best_row_length_is_no_costlier_than_any_other_that_was_tried():
    rng = random.Random(2)

    def cost(lengths: list[int], capacity: int) -> float:
        rows = fill_rows(lengths, capacity)
        length = max(sum(lengths[item] for item in row) for row in rows)
        return len(rows) * length * (1 + length / 300)

    for _ in range(100):
        lengths = [rng.randint(1, 200) for _ in range(rng.randint(1, 12))]
        best = best_row_length(lengths, attention_cost=1 / 300)
        assert best >= max(lengths)
        for count in range(1, len(lengths) + 1):
            capacity = max(*lengths, -(-sum(lengths) // count), 1)
            assert cost(lengths, best) <= cost(lengths, capacity) + 1e-9


def test_labels_in_several_dimensions_stay_with_their_responses():
    groups = [
        TokenGroup.of([[5], [5]], [[6], [7]], role=[0, 0], aspects=[[1.0, 2.0], [3.0, 4.0]]),
        TokenGroup.of([[8]], [[9]], role=[0], aspects=[[5.0, 6.0]]),
    ]
    found = pack(groups, "ragged", 0).aspects
    assert found is not None
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
