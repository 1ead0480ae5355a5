"""Models, tokenizers and adapters that cannot be trained as asked are refused, each in one line."""

import copy
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, FalconConfig, FalconForCausalLM

from alignment.cli import UserError
from alignment.core.scoring import REFERENCE_ADAPTER
from alignment.objectives.distillm2 import DistiLLM2
from alignment.trainers import loading
from alignment.trainers.base import GroupTrainer
from alignment.trainers.loading import Policy, load_model, load_policy, load_tokenizer
from tests.tiny import PAD_ID, save_tiny, tiny_model, tiny_tokenizer
from tests.trainers.runs import (
    build,
    logged,
    lora,
    pair_rows,
    run,
    scored,
    settings,
    small_model,
    whole_batch,
)


def policy(model: Any, tmp_path: Path, peft_config: Any = None, **changes: Any) -> Any:
    tokenizer = tiny_tokenizer()
    return load_policy(model, settings(tmp_path, **changes), tokenizer, peft_config=peft_config)


def refusal(model: Any, tmp_path: Path, peft_config: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        policy(model, tmp_path, peft_config)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- Names ----


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_name_that_is_no_model_is_refused_in_one_line(load: Any, tmp_path: Path):
    folder = tmp_path / "empty"
    folder.mkdir()
    file = tmp_path / "notes.txt"
    file.write_text("no model")
    expected = {
        "nobody/nothing": "is neither a folder here nor could it be loaded from the Hub",
        str(tmp_path / "empti"): "no such model folder: .*did you mean `.*empty`",
        str(folder): "is not a model folder: it holds no config.json",
        str(file): "is not a model folder",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            load(name, settings(tmp_path))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused_in_one_line(tmp_path: Path):
    small_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a model folder") as caught:
        load_model(str(tmp_path), settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_head_is_refused(tmp_path: Path):
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        architectures=["BertModel"],
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no language-model head"):
        load_model(str(tmp_path), settings(tmp_path))


def test_a_model_without_its_tokenizer_is_told(tmp_path: Path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds no tokenizer that can be read: save that of"):
        load_tokenizer(str(tmp_path), settings(tmp_path))


def test_a_revision_is_one_of_the_policy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loaded: list[tuple[str, str, str | None]] = []

    def record(kind: str, load: Any) -> Any:
        def recorded(source: Any, *args: Any, **kwargs: Any) -> Any:
            loaded.append((kind, Path(source).name, kwargs.get("revision")))
            return load(source, *args, **kwargs)

        return recorded

    for kind in ("AutoConfig", "AutoTokenizer"):
        auto = getattr(loading, kind)
        stand_in = types.SimpleNamespace(from_pretrained=record(kind, auto.from_pretrained))
        monkeypatch.setattr(loading, kind, stand_in)
    create = record("model", loading.create_model_from_path)
    monkeypatch.setattr(loading, "create_model_from_path", create)
    own, reference, teacher = (
        str(save_tiny(tmp_path / name)) for name in ("own", "reference", "teacher")
    )
    args = settings(tmp_path, model_init_kwargs={"revision": "abc"})
    GroupTrainer(own, args, pair_rows(4), ref_model=reference)
    GroupTrainer(own, args, pair_rows(4), teacher_model=teacher, objective=DistiLLM2())
    kinds = ("AutoConfig", "AutoTokenizer", "model")
    expected: set[Any] = {(kind, "own", "abc") for kind in kinds}
    expected |= {(kind, name, None) for kind in kinds for name in ("reference", "teacher")}
    assert set(loaded) == expected
    loaded.clear()
    adapted = GroupTrainer(own, args, pair_rows(4), ref_model=own, peft_config=lora())
    assert {revision for _, _, revision in loaded} == {"abc"}
    assert adapted.model.peft_config["default"].revision == "abc"  # for who loads the adapter


def test_a_chat_template_replaces_that_of_the_tokenizer(model_dir: Path, tmp_path: Path):
    template = tmp_path / "plain.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    found = load_tokenizer(str(model_dir), settings(tmp_path, chat_template_path=str(template)))
    assert found.chat_template == template.read_text()
    with pytest.raises(UserError, match=r"chat_template_path: no such file: .*absent\.jinja"):
        load_tokenizer(
            str(model_dir), settings(tmp_path, chat_template_path=str(tmp_path / "absent.jinja"))
        )


# ---- The policy ----


def test_the_padding_token_is_that_of_the_tokenizer_everywhere(tmp_path: Path):
    model = small_model()
    model.config.pad_token_id = model.generation_config.pad_token_id = 7
    found = policy(model, tmp_path).model
    assert found.config.pad_token_id == PAD_ID
    assert found.generation_config.pad_token_id == PAD_ID


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path):
    tokenizer, model = tiny_tokenizer(), small_model()
    tokenizer.pad_token = None
    load_policy(model, settings(tmp_path), tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id


def tiny_falcon(**options: Any) -> FalconForCausalLM:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return FalconForCausalLM(FalconConfig(vocab_size=320, **shape, **options))


@pytest.mark.parametrize(
    "model",
    [
        tiny_model("llama", attention_dropout=0.5),
        tiny_model("gpt2", resid_pdrop=0.5),
        tiny_falcon(hidden_dropout=0.5),
    ],
    ids=["layer", "module", "configuration"],
)
def test_no_layer_drops_wherever_its_rate_stands(model: Any, tmp_path: Path):
    ids = torch.arange(3, 20)[None]
    dropped, kept = (
        policy(copy.deepcopy(model), tmp_path, disable_dropout=disabled).model.train()
        for disabled in (False, True)
    )
    expected = model.eval()(ids).logits
    assert torch.equal(kept(ids).logits, expected)
    assert not torch.equal(dropped(ids).logits, expected)


def test_the_first_loss_is_exact_though_attention_would_drop(tmp_path: Path):
    trainer = run(tmp_path, model=small_model(attention_dropout=0.5), max_steps=1)
    assert logged(trainer)[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("disabled", [True, False])
def test_dropout_is_off_unless_it_is_asked_for(disabled: bool, tmp_path: Path):
    config = lora(lora_dropout=0.5)
    found = policy(small_model(), tmp_path, config, disable_dropout=disabled).model
    rates = {module.p for module in found.modules() if isinstance(module, nn.Dropout)}
    assert rates == ({0.0} if disabled else {0.5})


def test_the_seed_decides_the_weights_of_a_fresh_adapter(tmp_path: Path):
    first, second, other = (
        policy(small_model(), tmp_path, lora(), seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    (name, *_) = [name for name in first if "lora_A" in name]
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_only_the_adapter_is_trained(tmp_path: Path):
    found = policy(small_model(), tmp_path, lora()).model
    trained = [name for name, p in found.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


# ---- The name of the reference ----


def test_a_reference_of_the_hub_is_named_by_its_own_commit(tmp_path: Path):
    model, frozen = small_model(), small_model()
    model.config._commit_hash, frozen.config._commit_hash = "1", "2"
    own = Policy(model, model, "org/policy")
    memo = tmp_path / "hashes.json"
    assert own.reference_name(None, None, memo).startswith("org/policy@1:")
    assert own.reference_name("org/reference", frozen, memo).startswith("org/reference@2:")


def test_a_reference_of_no_known_commit_is_named_by_its_weights(tmp_path: Path):
    own = Policy(model := small_model(), model, None)
    first, same, other = (
        own.reference_name("org/reference", small_model(seed=seed), tmp_path / "hashes.json")
        for seed in (1, 1, 2)
    )
    assert first == same != other


# ---- Adapters ----


def test_an_adapter_on_the_head_is_refused(tmp_path: Path):
    message = refusal(small_model(), tmp_path, lora(target_modules=["q_proj", "lm_head"]))
    assert "take `lm_head` out of `lora_target_modules`" in message


def test_an_adapter_on_a_tied_embedding_is_refused(tmp_path: Path):
    config = lora(target_modules=["q_proj", "embed_tokens"])
    message = refusal(small_model(tie_word_embeddings=True), tmp_path, config)
    assert "tied to the head" in message


def test_an_adapter_on_an_embedding_of_its_own_is_trained(tmp_path: Path):
    trainer = run(tmp_path, peft_config=lora(target_modules=["q_proj", "embed_tokens"]))
    moved = [p for name, p in trainer.model.named_parameters() if "lora_embedding_B" in name]
    assert moved
    assert all(p.any() for p in moved)


def test_an_adapter_that_targets_nothing_is_refused(tmp_path: Path):
    message = refusal(small_model(), tmp_path, lora(target_modules=["no_such_layer"]))
    assert "has no module `no_such_layer`; its linear layers are down_proj, gate_proj" in message
    message = refusal(small_model(), tmp_path, lora(target_modules=r".*\.no_such_layer"))
    assert "lora_target_modules" in message


def test_a_target_that_some_layer_has_is_enough_and_the_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    found = policy(small_model(), tmp_path, lora(target_modules=["q_proj", "c_attn"])).model
    assert any("q_proj.lora_A" in name for name, _ in found.named_parameters())
    assert "has no module `c_attn`" in caplog.text


def test_one_target_as_text_is_a_name_and_no_expression(tmp_path: Path):
    """TRL's configuration makes a text of a list of one."""
    found = policy(small_model(), tmp_path, lora(target_modules="q_proj")).model
    assert any("q_proj.lora_A" in name for name, _ in found.named_parameters())


def test_a_second_adapter_is_refused(tmp_path: Path):
    message = refusal(get_peft_model(small_model(), lora()), tmp_path, lora())
    assert "the model has an adapter already" in message


def test_a_frozen_adapter_is_refused(tmp_path: Path):
    get_peft_model(small_model(), lora()).save_pretrained(tmp_path)
    message = refusal(PeftModel.from_pretrained(small_model(), tmp_path), tmp_path)
    assert "no trainable weight" in message
    assert "is_trainable=True" in message


def test_virtual_tokens_are_refused(tmp_path: Path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    message = refusal(small_model(), tmp_path, config)
    assert "virtual tokens" in message


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_trained_beside_the_adapter_is_compared_with_the_original(
    tied: bool, tmp_path: Path
):
    """The trained copy of the head serves the policy, the original one the reference."""
    model, untouched = (small_model(tie_word_embeddings=tied) for _ in range(2))
    config = lora(modules_to_save=["lm_head"])
    trainer = run(tmp_path, model=model, peft_config=config)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(1.0, abs=1e-6)
    heads = [
        p
        for name, p in trainer.model.named_parameters()
        if "lm_head.modules_to_save" in name and p.requires_grad
    ]
    assert len(heads) == 1
    start = untouched.get_output_embeddings().weight
    assert not torch.allclose(heads[0], start, atol=1e-4)
    batch = whole_batch(trainer, (trainer.train_dataset[i] for i in range(4)))
    reference = trainer.scorer.reference_logps(trainer.model, batch)
    torch.testing.assert_close(reference, scored(untouched, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_weights_that_train_beside_the_adapter_need_a_reference_that_does_not_move(
    bias: str, tmp_path: Path
):
    """Switching the adapter off leaves the model's own biases as they were trained."""
    biased: dict[str, Any] = {"peft_config": lora(target_modules=["c_attn"], bias=bias)}
    with pytest.raises(UserError, match=r"bias` trains and is no part of the adapter") as caught:
        build(tmp_path, model=tiny_model("gpt2"), **biased)
    assert "\n" not in str(caught.value)
    stored: dict[str, Any] = {"precompute_ref_log_probs": True}
    stored |= {"ref_cache_dir": str(tmp_path / "ref"), "save_strategy": "steps", "save_steps": 2}
    frozen, trained = (
        run(tmp_path, model=tiny_model("gpt2"), **biased, **given)
        for given in ({"ref_model": tiny_model("gpt2")}, stored)
    )
    assert logged(trained) == pytest.approx(logged(frozen), abs=1e-5)
    shutil.rmtree(tmp_path / "ref")
    again = build(tmp_path, model=tiny_model("gpt2"), **biased, **stored)
    with pytest.raises(UserError, match="no stored reference and the policy has moved on"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_continued_adapter_gets_a_frozen_copy_with_its_values(tmp_path: Path):
    torch.manual_seed(0)
    model = get_peft_model(small_model(), lora(init_lora_weights=False, use_rslora=True))
    found = policy(model, tmp_path).model
    pairs = [(name, p) for name, p in found.named_parameters() if f".{REFERENCE_ADAPTER}." in name]
    assert pairs
    for name, copied in pairs:
        original = found.get_parameter(name.replace(f".{REFERENCE_ADAPTER}.", ".default."))
        assert torch.equal(copied, original)
        assert original.requires_grad
        assert not copied.requires_grad
    assert found.active_adapter == "default"


@pytest.mark.parametrize("dora", [False, True])
def test_weight_decomposed_adapters_pass_the_preflight(dora: bool, tmp_path: Path):
    trainer = run(tmp_path, peft_config=lora(use_dora=dora))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(1.0, abs=1e-6)


def test_activation_checkpointing_changes_nothing_but_memory(tmp_path: Path):
    kept, recomputed = (
        run(tmp_path, activation_checkpointing=flag, max_steps=3) for flag in (False, True)
    )
    losses = [[entry.get("loss") for entry in t.state.log_history] for t in (kept, recomputed)]
    assert losses[0] == losses[1]
    assert recomputed.model.get_base_model().is_gradient_checkpointing


def test_a_model_in_four_bits_trains_its_adapter(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = tmp_path / "model"
    small_model().save_pretrained(folder)
    quantised = load_model(str(folder), settings(tmp_path), BitsAndBytesConfig(load_in_4bit=True))
    trainer = build(tmp_path, model=quantised)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(1.0, abs=1e-5)
    assert trainer.state.log_history[-2]["loss"] != trainer.state.log_history[0]["loss"]
