"""`torch_compile: true`: the layers are compiled once, whatever the lengths of the batches."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.trainers.runs import logged, run, small_model, trained_weights


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The compiler's frontend and autograd, without its code generator."""
    # transformers leaves the backend there, and the tests that follow would be compiled, too.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    plain = run(tmp_path / "plain", max_steps=6)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = run(
        tmp_path / "compiled", max_steps=6, torch_compile=True, torch_compile_backend="aot_eager"
    )
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["recompile_limit"]
    assert logged(compiled) == pytest.approx(logged(plain), abs=1e-5)
    apart = trained_weights(compiled) - trained_weights(plain)
    assert float(apart.norm() / trained_weights(plain).norm()) < 1e-4
    compiled.save_model()
    loaded = PeftModel.from_pretrained(small_model(), tmp_path / "compiled", is_trainable=True)
    found = torch.cat([p.flatten() for p in loaded.parameters() if p.requires_grad])
    assert torch.equal(found, trained_weights(compiled))
