"""CLM: one layer before the first, used in full, in part, beyond or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from alignment.adapters import adapter_config
from alignment.cli import UserError
from tests.adapters.shared import IDS, adapted, llama_blocks, loaded, logits, run_blocks, saved
from tests.tiny import tiny_model


@pytest.mark.parametrize("coefficient", [0.25, 1.0, 1.5])
def test_the_first_layer_gets_the_mixture_of_plain_and_aligned_embeddings(
    coefficient: float, tmp_path: Path
):
    """h = (1 - c) E + c layer(E), and then the frozen layers, each a few lines of arithmetic."""
    model = adapted("clm", moved=0.1)
    found = logits(loaded(saved(model, tmp_path), coefficient=coefficient), IDS[:1])[0]
    base = tiny_model()
    inserted = tiny_model()
    own = model.get_base_model().model.layers[0].clm_layers["default"]
    inserted.model.layers[0].load_state_dict(own.state_dict())
    embeddings = base.model.embed_tokens.weight[IDS[0]].detach()
    with torch.no_grad():
        aligned = llama_blocks(inserted)[0](embeddings)
        mixed = (1 - coefficient) * embeddings + coefficient * aligned
        expected = run_blocks(base, llama_blocks(base), mixed)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_at_coefficient_0_answers_are_those_of_the_base(family: str, tmp_path: Path):
    model = loaded(saved(adapted("clm", family, moved=0.1), tmp_path), family, coefficient=0)
    assert torch.equal(logits(model), logits(tiny_model(family)))
    answers = [
        m.generate(IDS, max_new_tokens=8, do_sample=False) for m in (model, tiny_model(family))
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "gpt2"])
def test_merged_it_is_a_model_of_one_layer_more(family: str, tmp_path: Path):
    model = adapted("clm", family, moved=0.1)
    before = logits(model)
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged), before)
    assert merged.config.num_hidden_layers == 3
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again.eval()), before)
    settings = {"max_new_tokens": 8, "do_sample": False}
    answers = [m.generate(IDS, **settings) for m in (again, adapted("clm", family, moved=0.1))]
    assert torch.equal(*answers)


def test_used_in_part_it_cannot_be_merged(tmp_path: Path):
    model = loaded(saved(adapted("clm", moved=0.1), tmp_path), coefficient=0.5)
    with pytest.raises(ValueError, match=r"at coefficient 0\.5 it is a mixture of two embeddings"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="merged by `merge_and_unload` alone"):
        model.merge_adapter()
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), True, "half"])
def test_a_coefficient_that_is_no_number_is_refused(value: object, tmp_path: Path):
    folder = saved(adapted("clm"), tmp_path)
    with pytest.raises(
        UserError, match=r"adapter_kwargs: CLMConfig\.coefficient is .*: write a finite"
    ):
        loaded(folder, coefficient=value)


def test_an_architecture_that_it_does_not_fit_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"`gemma3_text` normalise what they add \(`post_feed"):
        get_peft_model(tiny_model("gemma3"), adapter_config("clm"))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    first = bloom.transformer.h[0]
    first.mlp.out, first.mlp.dense_4h_to_h = first.mlp.dense_4h_to_h, torch.nn.Identity()
    with pytest.raises(ValueError, match="`mlp` of a layer has no output projection"):
        get_peft_model(bloom, adapter_config("clm"))


def test_quantised_weights_are_told_in_one_line():
    model = tiny_model()
    projection = model.model.layers[0].self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="copy of the first layer, whose weights are quantised"):
        get_peft_model(model, adapter_config("clm"))
