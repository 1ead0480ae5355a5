"""A merged model says what base and adapter said, or is not kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from alignment.adapters import adapter_config
from alignment.cli import UserError
from alignment.commands import merge
from alignment.commands.merge import main, token_logps
from alignment.llm.model import load_pretrained
from tests.tiny import save_tiny
from tests.trainers.runs import lora

IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), num_hidden_layers=1)


def adapter(folder: Path, base: Path, **changes: Any) -> Path:
    """An adapter as training leaves it: weights drawn at random, its base named in its config."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, lora(init_lora_weights=False, **changes))
    adapted.save_pretrained(folder)
    return folder


def merged(folder: Path, *words: str) -> Any:
    main(["--adapter", str(folder), "--output", str(folder / "merged"), *words])
    return AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto").eval()


def refusal(folder: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        main(["--adapter", str(folder), "--output", str(folder / "merged"), *words])
    assert not list(folder.glob("*merged*")), "something is left behind"
    return str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_the_merged_model_is_base_and_adapter(
    changes: dict[str, Any], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = merged(adapter(tmp_path, base, **changes))
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    plain = token_logps(model, IDS)
    expected = token_logps(PeftModel.from_pretrained(model, tmp_path).eval(), IDS)
    torch.testing.assert_close(token_logps(found, IDS), expected, rtol=0, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    assert "bound 0.0001" in capsys.readouterr().out


def test_weights_tokenizer_template_and_generation_config_are_written(base: Path, tmp_path: Path):
    merged(adapter(tmp_path, base))
    folder = tmp_path / "merged"
    assert (folder / "model.safetensors").is_file()
    assert (folder / "generation_config.json").is_file()
    assert not list(folder.glob("*.bin"))
    own, first = (AutoTokenizer.from_pretrained(path) for path in (folder, base))
    assert own.chat_template == first.chat_template
    assert "lora" not in " ".join(load_file(folder / "model.safetensors"))


def test_the_tokenizer_of_the_adapter_comes_before_that_of_the_base(base: Path, tmp_path: Path):
    adapter(tmp_path, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path)
    merged(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template.startswith("{{ messag")


def test_the_precision_can_be_chosen(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = merged(adapter(tmp_path, base), "--dtype", "bfloat16")
    assert {weight.dtype for weight in found.parameters()} == {torch.bfloat16}
    assert "torch.bfloat16" in capsys.readouterr().out


def test_prompts_of_ones_own_are_compared_on(base: Path, tmp_path: Path):
    rows = [{"prompt": "what is it?"}, {"prompt": [{"role": "user", "content": "and why?"}]}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    merged(adapter(tmp_path, base), "--prompts", str(prompts))
    prompts.write_text('{"question": "what?"}\n')
    other = adapter(tmp_path / "other", base)
    assert "no row with a `prompt`" in refusal(other, "--prompts", str(prompts))


def test_a_merged_model_that_differs_is_not_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is written is read again; here the written weights are changed on the way."""
    adapter(tmp_path, base)
    load = merge._load

    def tampered(source: merge.Source, *args: Any, **kwargs: Any) -> Any:
        file = Path(source.name) / "model.safetensors"
        if source.name != str(base):
            weights = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
            save_file(weights, file, metadata={"format": "pt"})
        return load(source, *args, **kwargs)

    monkeypatch.setattr(merge, "_load", tampered)
    message = refusal(tmp_path)
    assert "differs from base and adapter by" in message
    assert "(bound 0.0001 in torch.float32), so nothing is kept" in message


def scaled(folder: Path, by: float) -> Path:
    """The same adapter with another strength."""
    file = folder / "adapter_model.safetensors"
    weights = {name: w * by if "lora_B" in name else w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_an_adapter_that_rounding_loses_is_not_merged_unless_in_float32(base: Path, tmp_path: Path):
    """At a thousandth it changes weights of 0.02 by 1e-5, of which bfloat16 rounds 1e-4 away."""
    small = scaled(adapter(tmp_path, base), 1e-3)
    message = refusal(small, "--dtype", "bfloat16")
    assert message.startswith("rounding to torch.bfloat16 may lose the adapter, which moves")
    assert "more than half of that, so nothing is kept: merge with `--dtype float32`" in message
    merged(small, "--dtype", "float32")


def test_an_adapter_that_does_nothing_is_merged_in_any_precision(base: Path, tmp_path: Path):
    merged(scaled(adapter(tmp_path, base), 0.0), "--dtype", "bfloat16")


def test_weights_that_are_no_number_are_not_kept(base: Path, tmp_path: Path):
    file = adapter(tmp_path, base) / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    assert "cannot be merged: NaNs detected" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base", "no/such-base"], "no/such-base` is neither a folder here"),
        (["--dtype", "int8"], "expects one of auto, float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_merged_is_told_in_one_line(
    words: list[str], message: str, base: Path, tmp_path: Path
):
    assert message in refusal(adapter(tmp_path, base), *words)


def test_a_folder_without_an_adapter_and_a_full_output_are_refused(base: Path, tmp_path: Path):
    with pytest.raises(UserError, match="is no adapter"):
        main(["--adapter", str(base), "--output", str(tmp_path / "new")])
    with pytest.raises(UserError, match="exists already: name another"):
        main(["--adapter", str(adapter(tmp_path, base)), "--output", str(tmp_path)])


def test_the_base_is_taken_at_the_revision_that_the_adapter_names(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = adapter(tmp_path, base) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "revision": "v1"}))
    other = shutil.copytree(base, tmp_path / "other")
    taken: list[tuple[str, str, str]] = []
    for auto in (merge.AutoModelForCausalLM, merge.AutoTokenizer):

        def noted(source: str, *, auto: Any = auto, load: Any = auto.from_pretrained, **more: Any):
            taken.append((auto.__name__, Path(source).name, more.get("revision", "main")))
            return load(source, **more)

        monkeypatch.setattr(auto, "from_pretrained", noted)
    merged(tmp_path)
    assert ("AutoModelForCausalLM", base.name, "v1") in taken
    assert ("AutoTokenizer", base.name, "v1") in taken
    assert {revision for _, name, revision in taken if name != base.name} == {"main"}
    taken.clear()
    shutil.rmtree(tmp_path / "merged")
    merged(tmp_path, "--base", str(other))
    assert {revision for _, _, revision in taken} == {"main"}


def test_an_adapter_of_an_unknown_type_is_refused(base: Path, tmp_path: Path):
    file = adapter(tmp_path, base) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "NEWEST"}))
    told = "is an adapter of the type 'NEWEST', which neither peft nor this project knows"
    assert told in refusal(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=told):
        load_pretrained(str(tmp_path), "AutoModelForCausalLM", "cpu")


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path):
    other = save_tiny(tmp_path / "wide", num_hidden_layers=1, hidden_size=48)
    folder = adapter(tmp_path / "adapter", base)
    assert "is no adapter of" in refusal(folder, "--base", str(other))


def test_the_merged_model_is_uploaded_where_asked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, name: str, **kwargs: Any) -> None:
            calls.append((name, kwargs))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return f"hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    merged(adapter(tmp_path, base), "--push-to-hub", "me/merged")
    assert calls[0] == ("me/merged", {"private": True, "exist_ok": True})
    assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= set(calls[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_an_adapter_of_a_base_in_four_bits_is_merged_into_its_weights_dequantised(
    nested: bool, tmp_path: Path
):
    """Into the original weights it would be merged wrongly: they are others."""
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", num_hidden_layers=1, hidden_size=64, intermediate_size=128)
    folder = adapter(tmp_path / "adapter", base)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantised)
    # Not `eval`: in that bitsandbytes takes kernels of half precision where the CPU has AVX-512
    # BF16, and those take no narrow layers.
    expected = token_logps(PeftModel.from_pretrained(model, folder).train(), IDS)
    words = ["--load-in-4bit", *(["--use-bnb-nested-quant"] if nested else [])]
    found = merged(folder, *words)
    assert not hasattr(found.config, "quantization_config")
    exact = float((token_logps(found, IDS) - expected).abs().max())
    model = AutoModelForCausalLM.from_pretrained(base)
    original = token_logps(PeftModel.from_pretrained(model, folder).eval(), IDS)
    assert exact < 2e-3
    assert float((original - expected).abs().max()) > 10 * exact


def test_an_adapter_of_ours_is_merged_as_it_is_used_or_says_why_not(base: Path, tmp_path: Path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter_config("clm"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight) if weight.requires_grad else 0)
    model.save_pretrained(tmp_path)
    expected = token_logps(model.eval(), IDS)
    found = merged(tmp_path)
    torch.testing.assert_close(token_logps(found, IDS), expected, rtol=0, atol=1e-4)
    assert found.config.num_hidden_layers == 2
    shutil.rmtree(tmp_path / "merged")
    told = refusal(tmp_path, "--adapter-kwargs", '{"coefficient": 0.5}')
    assert told.startswith(f"adapter `{tmp_path}` cannot be merged: at coefficient 0.5")
    assert "unknown setting" in refusal(tmp_path, "--adapter-kwargs", '{"coeficient": 0.5}')
