"""Aligner: global tokens that the upper layers attend to, each through its own projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from alignment.adapters import adapter_config
from tests.adapters.shared import IDS, adapted, llama_blocks, logits, run_blocks, saved, trained
from tests.tiny import tiny_model


def test_a_head_adds_what_it_finds_in_the_tokens_by_its_gate():
    """Attn' = Attn + g softmax(q P_K^T / sqrt(D)) P_V, with P_K and P_V by the layer's weights."""
    model = adapted("aligner", moved=0.5)
    weights = {name.rpartition("layers.")[2]: weight for name, weight in trained(model).items()}
    tokens, base = weights["0.self_attn.aligner_tokens.default"].detach(), tiny_model()

    def reads(index: int) -> Any:
        attention = base.model.layers[index].self_attn
        gates = weights[f"{index}.self_attn.aligner_gates.default"].detach()
        key, value = (
            (tokens @ part.weight.T).unflatten(-1, (2, 8)).transpose(0, 1).repeat_interleave(2, 0)
            for part in (attention.k_proj, attention.v_proj)
        )

        def read(query: Tensor) -> Tensor:
            weight = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
            return gates[:, None, None] * (weight @ value)

        return read

    with torch.no_grad():
        embeddings = base.model.embed_tokens.weight[IDS[0]]
        expected = run_blocks(base, llama_blocks(base, [reads(0), reads(1)]), embeddings)
    assert torch.allclose(logits(model, IDS[:1])[0], expected, atol=1e-4)


def test_the_tokens_are_kept_once_and_a_gate_per_head_and_layer(tmp_path: Path):
    model = adapted("aligner")
    weights = load_file(saved(model, tmp_path) / "adapter_model.safetensors")
    shapes = {name.rpartition("layers.")[2]: weight.shape for name, weight in weights.items()}
    assert shapes == {
        "0.self_attn.aligner_tokens": (3, 32),
        "0.self_attn.aligner_gates": (4,),
        "1.self_attn.aligner_gates": (4,),
    }


def test_a_7b_model_gets_about_five_thousand_weights():
    """One token of 4096 and a gate for 32 heads of 30 layers: 5056, by the paper about 5K."""
    with torch.device("meta"):
        model = tiny_model(
            hidden_size=4096,
            intermediate_size=8,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
        )
        adapted_model = get_peft_model(model, adapter_config("aligner"))
    assert sum(weight.numel() for weight in trained(adapted_model).values()) == 5056


def test_lower_layers_see_no_token():
    model = get_peft_model(tiny_model(), adapter_config("aligner", {"start_layer": 1}))
    assert {name.split(".")[4] for name in trained(model)} == {"1"}


def test_it_works_with_eager_attention_too():
    weights = trained(adapted("aligner", moved=0.5))
    model = get_peft_model(
        tiny_model(), adapter_config("aligner", {"tokens": 3, "start_layer": 0})
    ).eval()
    model.get_base_model().set_attn_implementation("eager")
    with torch.no_grad():
        for name, weight in trained(model).items():
            weight.copy_(weights[name])
    assert torch.allclose(logits(model), logits(adapted("aligner", moved=0.5)), atol=1e-5)


def test_keys_are_normalised_where_the_architecture_does_so():
    """The layer's attention over the tokens alone is what a gate of 1 adds."""
    model = adapted("aligner", "qwen3", moved=0.5)
    layer = model.get_base_model().model.layers[0].self_attn
    attention, query = layer.base_layer, torch.randn(1, 4, 5, 8)
    tokens = layer.aligner_tokens["default"]
    key = attention.k_norm(attention.k_proj(tokens).view(3, 2, 8)).transpose(0, 1)
    value = attention.v_proj(tokens).view(3, 2, 8).transpose(0, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key[None].repeat_interleave(2, 1), value[None].repeat_interleave(2, 1)
    )
    gates = layer.aligner_gates["default"][None, :, None, None]
    found = layer.found(query, 8**-0.5)
    assert torch.allclose(found, (gates * expected).transpose(1, 2), atol=1e-6)


def test_it_is_not_merged_and_says_why():
    model = adapted("aligner", moved=0.5)
    before = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(
            ValueError, match="attended to, so no weight of the model can hold them"
        ):
            merge()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("gpt2", {"start_layer": 0}, "layers of `gpt2` have no attention with `k_proj` and `v_pro"),
        ("llama", {}, "start_layer is 2, but the layers are 0 to 1"),
    ],
)
def test_an_architecture_that_it_does_not_fit_is_told_in_one_line(
    family: str, settings: dict[str, int], told: str
):
    with pytest.raises(ValueError, match=told):
        get_peft_model(tiny_model(family), adapter_config("aligner", settings))
