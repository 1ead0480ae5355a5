"""Texts as vectors: means of hidden states, whatever stands beside them in a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.llm.model import load_pretrained
from alignment.rounds.embedding import embed, nearest
from tests.tiny import save_tiny

SHORT, LONG = "the user", "the user asked the assistant what the answer to the question is"


def test_a_vector_is_the_mean_of_the_last_hidden_states(model_dir: Path):
    loaded = load_pretrained(str(model_dir), "AutoModel", "cpu")
    ids = loaded.tokenizer(SHORT, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = loaded.model(ids).last_hidden_state[0].double().mean(0)
    found = embed([SHORT], model_dir, "cpu")
    assert found.shape == (1, loaded.model.config.hidden_size)
    assert np.allclose(found[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_text_has_the_same_vector_beside_longer_ones(family: str, tmp_path: Path):
    """Positions of GPT-2 are absolute, so that padding before a text would move them."""
    model = save_tiny(tmp_path / family, family)
    together, alone = embed([SHORT, LONG], model, "cpu"), embed([SHORT], model, "cpu")
    assert np.allclose(together[0], alone[0], atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-2)


def test_no_text_and_half_a_character_have_vectors_too(model_dir: Path):
    empty, half = embed(["", "\ud83d"], model_dir, "cpu")
    assert not empty.any()
    assert np.isfinite(half).all()
    assert embed([], model_dir, "cpu").shape == (0, 0)


def test_the_nearest_come_first_by_angle_and_not_by_length():
    known = np.array([[0.0, 1.0], [9.0, 1.0], [0.1, 0.0], [0.0, 0.0]])
    assert nearest(np.array([1.0, 0.0]), known, 3) == [2, 1, 0]
