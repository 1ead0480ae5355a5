"""A position sees the prefix and its own branch, as far back as the model's window reaches."""

from typing import Any, cast

import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3NextConfig,
    RwkvConfig,
    T5Config,
)

from alignment.core.attention import attention_mask, visible, why_not_shared, within
from alignment.core.packing import PADDING, PackedBatch, TokenGroup, pack
from tests.core.batches import ragged_groups
from tests.tiny import FAMILIES, WINDOW, tiny_config


def config(family: str, backend: str = "sdpa", **overrides: Any) -> Any:
    made = tiny_config(family, **overrides)
    made._attn_implementation = backend
    return made


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> PackedBatch:
    """Groups in the shared layout over several rows, with padding."""
    monkeypatch.setattr("alignment.core.packing.best_row_length", max)
    return pack(ragged_groups(), "shared", 0)


def test_what_a_position_sees_matches_the_rule_cell_by_cell(batch: PackedBatch):
    seen = visible(batch)
    rows, length = batch.input_ids.shape
    assert rows > 1
    assert (batch.sequence == PADDING).any()
    for row in range(rows):
        sequence, branch = batch.sequence[row].tolist(), batch.branch[row].tolist()
        for query in range(length):
            for key in range(length):
                expected = (
                    key <= query
                    and sequence[key] == sequence[query]
                    and branch[key] in (0, branch[query])
                )
                assert bool(seen[row, query, key]) == expected


def test_no_position_is_blind(batch: PackedBatch):
    """A softmax over nothing would be NaN, in padding too."""
    narrow = visible(batch) & within(batch, 1)
    assert visible(batch).any(-1).all()
    assert narrow.any(-1).all()


def test_a_window_counts_tokens_of_the_own_text_not_places_in_the_row():
    """Two branches of 3 behind a prefix of 4: in the row the second branch is 3 places further
    from the prefix than in its own text. With a window of 4 its first position, number 4 of its
    text, sees 1, 2, 3 and itself.
    """
    group = TokenGroup.of([[1, 2, 3, 4]] * 2, [[5, 6, 7, 8], [9, 10, 11, 12]], role=[0, 0])
    batch = pack([group], "shared", 0)
    seen = (visible(batch) & within(batch, 4))[0]
    (first_of_second,) = torch.nonzero(batch.input_ids[0] == 9, as_tuple=True)
    assert seen[int(first_of_second)].nonzero().flatten().tolist() == [1, 2, 3, 7]


def test_single_sequences_need_no_more_than_a_padding_mask():
    batch = pack(ragged_groups(), "plain", 0)
    mask = attention_mask(batch, config("mistral"), torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert mask.tolist() == (batch.sequence != PADDING).long().tolist()


def test_sdpa_takes_booleans_and_eager_takes_addends(batch: PackedBatch):
    rows, length = batch.input_ids.shape
    boolean = attention_mask(batch, config("llama", "sdpa"), torch.bfloat16)
    additive = attention_mask(batch, config("llama", "eager"), torch.bfloat16)
    assert isinstance(boolean, torch.Tensor)
    assert isinstance(additive, torch.Tensor)
    assert boolean.shape == additive.shape == (rows, 1, length, length)
    assert (boolean.dtype, additive.dtype) == (torch.bool, torch.bfloat16)
    assert ((additive == 0) == boolean).all()
    assert (additive[~boolean] == torch.finfo(torch.bfloat16).min).all()


def test_a_window_on_every_layer_gives_one_mask_that_is_cut(batch: PackedBatch):
    mask = attention_mask(batch, config("mistral"), torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert (mask[:, 0] == visible(batch) & within(batch, WINDOW)).all()
    assert (mask[:, 0] != visible(batch)).any()


def test_mixed_layers_get_a_mask_for_each_kind(batch: PackedBatch):
    masks = cast(dict[str, torch.Tensor], attention_mask(batch, config("gemma3"), torch.float32))
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert (masks["full_attention"][:, 0] == visible(batch)).all()
    assert (masks["sliding_attention"][:, 0] == visible(batch) & within(batch, WINDOW)).all()


def test_a_window_that_a_model_switches_off_is_no_window(batch: PackedBatch):
    mask = attention_mask(batch, config("qwen3", sliding_window=WINDOW), torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert (mask[:, 0] == visible(batch)).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_families_that_attend_everywhere_can_share(family: str, backend: str):
    assert why_not_shared(config(family, backend)) is None


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (Qwen3NextConfig(num_hidden_layers=4), "linear_attention"),
        (Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2), "conv"),
        (JambaConfig(), "carry state"),
        (MambaConfig(), "carry state"),
        (RwkvConfig(), "not attention all the way"),
        (T5Config(), "encoder-decoder"),
        (BloomConfig(), "places in the row"),
        (FalconConfig(alibi=True), "places in the row"),
        (GPTNeoConfig(), "places in the row"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_models_that_cannot_share_a_prefix_are_refused_by_what_they_are(refused: Any, reason: str):
    refused._attn_implementation = "eager"
    assert reason in (why_not_shared(refused) or "")


def test_a_backend_without_custom_masks_is_refused_with_the_remedy():
    llama = LlamaConfig()
    llama._attn_implementation = "flash_attention_2"
    assert "use sdpa or flex_attention" in (why_not_shared(llama) or "")
