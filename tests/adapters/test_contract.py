"""What every adapter keeps: it starts as nothing, is peft's to save, and fits the packed core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.utils import register_peft_method
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.adapters import adapter_config, available_adapters
from alignment.adapters.base import AdapterType, load_adapter
from alignment.cli import UserError
from alignment.core.packing import TokenGroup, pack
from alignment.core.scoring import REFERENCE_ADAPTER
from alignment.objectives.awr import AWR
from alignment.objectives.dpo import DPO
from tests.adapters.shared import IDS, SETTINGS, adapted, loaded, logits, saved, trained
from tests.tiny import PAD_ID, tiny_model
from tests.trainers.runs import build, logged, scored

NAMES = available_adapters()
EVERYWHERE = ("llama", "qwen3", "mistral", "gpt_oss")
"""Families that every adapter fits: two masks, two caches, attention sinks, experts."""

GROUP = TokenGroup.of(
    [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 30]],
    [[11, 12, 13], [14, 15, 16, 17, 18, 19, 20, 21, 22, 23], [24, 25]],
    role=[1, -1, 0],
)


def test_every_adapter_is_tested():
    assert sorted(SETTINGS) == NAMES


@pytest.mark.parametrize("family", EVERYWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_adapter_changes_no_bit(name: str, family: str):
    assert torch.equal(logits(adapted(name, family)), logits(tiny_model(family)))


@pytest.mark.parametrize("family", EVERYWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_switched_off_or_unloaded_the_model_is_the_base_to_the_bit(name: str, family: str):
    model, base = adapted(name, family, moved=0.1), logits(tiny_model(family))
    assert not torch.allclose(logits(model), base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert not torch.allclose(logits(model), base, atol=1e-3)
    assert torch.equal(logits(model.unload()), base)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_all_of_the_adapter_and_nothing_else(name: str):
    model = adapted(name, moved=0.1)
    model(IDS).logits.square().mean().backward()
    with_gradient = {n for n, w in model.named_parameters() if w.grad is not None and w.grad.any()}
    assert with_gradient == set(trained(model))
    assert all(name in weight for weight in with_gradient)


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_adapter_has_a_gradient_to_begin_with(name: str):
    model = adapted(name)
    model(IDS).logits.square().mean().backward()
    assert any(weight.grad.any() for weight in trained(model).values())  # type: ignore[union-attr]


@pytest.mark.parametrize("family", EVERYWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_is_the_same_to_the_bit(name: str, family: str, tmp_path: Path):
    model = adapted(name, family, moved=0.1)
    again = PeftModel.from_pretrained(
        tiny_model(family), saved(model, tmp_path), adapter_name="other"
    )
    assert torch.equal(logits(again), logits(model))
    assert trained(again) == {}
    assert again.peft_config["other"].peft_type == PeftConfig.from_pretrained(tmp_path).peft_type


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_it_by_the_folder_of_the_adapter(name: str, tmp_path: Path):
    model = adapted(name, moved=0.1)
    tiny_model().save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(saved(model, tmp_path / "adapter"))
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


@pytest.mark.parametrize("layout", ["shared", "ragged"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("name", NAMES)
def test_shared_layouts_give_the_log_probs_of_the_plain_one(name: str, family: str, layout: Any):
    model = adapted(name, family, moved=0.1)
    found, plain = (scored(model, pack([GROUP], kind, PAD_ID)) for kind in (layout, "plain"))
    assert torch.allclose(found, plain, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(plain, scored(model, pack([GROUP], "plain", PAD_ID)), atol=1e-3)


@pytest.mark.parametrize("family", EVERYWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_changes_no_token_and_padding_none_either(name: str, family: str):
    model = adapted(name, family, moved=0.1)
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    alone = model.generate(IDS[:1], **settings)[0, IDS.shape[1] :]
    plain = model.generate(IDS[:1], use_cache=False, **settings)[0, IDS.shape[1] :]
    assert torch.equal(alone, plain)
    beams = [
        model.generate(IDS, num_beams=3, use_cache=use_cache, **settings)
        for use_cache in (True, False)
    ]
    assert torch.equal(*beams)
    padded = torch.cat([torch.full((2, 3), PAD_ID), IDS], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long().expand_as(padded)
    left = model.generate(padded, attention_mask=mask, **settings)[0, padded.shape[1] :]
    assert torch.equal(alone, left)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_runs_with_an_adapter_in_full(name: str):
    model = adapted(name, moved=0.1, dtype=torch.bfloat16)
    assert {weight.dtype for weight in trained(model).values()} == {torch.float32}
    found = logits(model)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), logits(adapted(name, moved=0.1)), atol=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_starts_at_its_reference_and_learns(name: str, tmp_path: Path):
    trainer = build(
        tmp_path,
        model=tiny_model(),
        peft_config=adapter_config(name, SETTINGS[name]),
        objective=DPO(),
        activation_checkpointing=True,
        save_strategy="steps",
        save_steps=4,
    )
    before = {n: w.clone() for n, w in trainer.model.named_parameters() if not w.requires_grad}
    trainer.train()
    losses = logged(trainer)
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0]
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[n], w) for n, w in before.items())
    again = load_adapter(tiny_model(), tmp_path / "checkpoint-4")
    assert torch.equal(logits(again.eval()), logits(trainer.model.eval()))


@pytest.mark.parametrize("name", NAMES)
def test_going_on_compares_with_a_frozen_copy_of_where_it_began(name: str, tmp_path: Path):
    folder = saved(adapted(name, moved=0.1), tmp_path / "adapter")
    model = load_adapter(tiny_model(), folder, is_trainable=True)
    trainer = build(tmp_path / "run", model=model, full=True, objective=DPO())
    trainer.train()
    assert logged(trainer)[0] == pytest.approx(0.693147, abs=1e-5)
    model = trainer.model.eval()
    moved = logits(model)
    model.set_adapter(REFERENCE_ADAPTER)
    assert torch.equal(logits(model), logits(loaded(folder)))
    assert not torch.equal(moved, logits(model))


@pytest.mark.parametrize("name", NAMES)
def test_a_head_that_is_trained_along_is_saved_with_the_adapter(name: str, tmp_path: Path):
    rows = [{"prompt": f"{k}: what is it?", "completion": " a bird", "reward": k} for k in range(4)]
    config = adapter_config(name, SETTINGS[name])
    trainer = build(tmp_path, rows, model=tiny_model(), peft_config=config, objective=AWR())
    trainer.train()
    trainer.save_model()
    weights = load_file(tmp_path / "adapter_model.safetensors")
    heads = {key: weight for key, weight in weights.items() if "value_head" in key}
    assert {key.rpartition(".")[2] for key in heads} == {"weight", "bias"}
    assert all(weight.any() for weight in heads.values())
    assert any(name in key for key in weights)


# ---- Settings and peft ----


def test_an_unknown_adapter_or_setting_is_told_with_the_nearest():
    with pytest.raises(UserError, match="unknown adapter `alinger`; did you mean `aligner`"):
        adapter_config("alinger")
    with pytest.raises(UserError, match="unknown key of adapter_kwargs `token`; did you mean `tok"):
        adapter_config("aligner", {"token": 2})
    with pytest.raises(UserError, match="adapter_kwargs: tokens must be at least 1"):
        adapter_config("aligner", {"tokens": 0})


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("aligner", {"tokens": "3"}, r"AlignerConfig\.tokens is '3': write a whole number"),
        ("aligner", {"start_layer": 0.5}, r"AlignerConfig\.start_layer is 0\.5: write a whole n"),
        ("panacea", {"r": 2.5}, r"PanaceaConfig\.r is 2\.5: write a whole number"),
        ("panacea", {"dimensions": None}, r"PanaceaConfig\.dimensions is None: write a whole n"),
        ("panacea", {"target_modules": 3}, "target_modules is 3; it must be names of linear lay"),
        ("panacea", {"target_modules": []}, r"target_modules is \[\]; it must be names of linear"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_told_with_its_name(
    name: str, settings: dict[str, Any], told: str
):
    with pytest.raises(UserError, match=f"adapter_kwargs: {told}"):
        adapter_config(name, settings)


def test_a_setting_of_use_is_no_setting_of_training_and_the_other_way_round(tmp_path: Path):
    with pytest.raises(UserError, match=r"adapter_kwargs\.coefficient is set when the adapter is "):
        adapter_config("clm", {"coefficient": 0.5})
    folder = saved(adapted("aligner"), tmp_path)
    with pytest.raises(UserError, match="unknown setting to use the adapter with `tokens`"):
        load_adapter(tiny_model(), folder, {"tokens": 2})


def test_an_adapter_of_pefts_own_takes_no_settings(tmp_path: Path):
    config = peft.LoraConfig(target_modules=["q_proj"])
    peft.get_peft_model(tiny_model(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="an adapter of peft's own, which takes no adapter_kwargs"):
        load_adapter(tiny_model(), tmp_path, {"coefficient": 0.5})
    assert load_adapter(tiny_model(), tmp_path).peft_config["default"].peft_type == "LORA"


def test_peft_knows_the_adapters_by_text_and_still_has_no_door_of_its_own():
    """When this fails peft has changed: take its way of registering, in `adapters/base.py`."""
    for table in (
        peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        assert {kind.value for kind in AdapterType} <= {*table}
        assert len({*table}) == len(table)
    assert {kind.value.lower() for kind in AdapterType} == set(NAMES)
    assert not {kind.value for kind in AdapterType} & {kind.value for kind in peft.PeftType}
    with pytest.raises(ValueError, match="Unknown PEFT type CLM, please add an entry"):
        register_peft_method(name="clm", config_cls=PeftConfig, model_cls=None)
