"""The checks before training find a wrong layout, a wrong reference and labels that do not fit."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from alignment.core import attention
from alignment.core.packing import PackedBatch, pack
from alignment.core.preflight import LOGP_TOLERANCE, Preflight, layout_difference
from alignment.core.scoring import Scorer, add_scored_forward
from alignment.objectives.apo import APO
from alignment.objectives.base import Objective
from alignment.objectives.dpo import DPO
from alignment.objectives.sft import SFT
from tests.core.batches import adapted, ragged_groups, token_group
from tests.tiny import tiny_model


def fresh() -> PeftModel:
    """An adapter that does nothing yet, as peft starts it."""
    base = tiny_model("llama")
    add_scored_forward(base)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).eval()


def pair_batch(role: Sequence[int] = (1, -1)) -> PackedBatch:
    rng = random.Random(0)
    return pack([token_group(rng, 9, [12, 5], role=role) for _ in range(3)], "shared", 0)


def preflight(
    objective: Objective, model: PeftModel, batch: PackedBatch | None = None
) -> Preflight:
    scorer = Scorer(objective, ref_model=None, unwrap=lambda wrapped: wrapped)
    return Preflight.of(scorer, model, batch or pair_batch())


@pytest.mark.parametrize(
    ("objective", "first_loss"),
    [
        (DPO(beta=0.3), math.log(2)),
        (APO(variant="zero"), 1.0),
        (APO(variant="down"), 1.0),
        (APO(form="unpaired", desirable_weight=3.0), 1.0),
    ],
    ids=repr,
)
def test_a_fresh_adapter_passes_with_the_loss_that_labels_predict(
    objective: Objective, first_loss: float
):
    """Unpaired: every sigmoid is 1/2, the weights are 3 and 1: (3 + 1) / 2 / 2 = 1."""
    found = preflight(objective, fresh())
    assert found.largest_ratio < 1e-6
    assert found.loss == pytest.approx(first_loss, rel=1e-5)
    assert found.expected_loss == pytest.approx(first_loss)
    assert found.fault(torch.float32) is None


def test_an_objective_without_a_predicted_loss_is_checked_for_its_log_ratio_alone():
    found = replace(preflight(SFT(), fresh()), largest_ratio=0.0)
    assert found.expected_loss is None
    assert found.fault(torch.float32) is None


def test_an_adapter_that_has_moved_is_caught():
    fault = preflight(DPO(), adapted("llama")).fault(torch.float32)
    assert fault is not None
    assert "the policy should equal the reference" in fault
    assert "preflight: false" in fault
    assert "\n" not in fault


def test_one_token_that_differs_is_enough():
    model = fresh()
    batch = pair_batch()
    scorer = Scorer(DPO(), ref_model=None, unwrap=lambda wrapped: wrapped)
    with torch.no_grad():
        stored = scorer.reference_logps(model, batch)
    stored[7] += 1e-3
    found = preflight(DPO(), model, replace(batch, ref_logps=stored))
    assert found.largest_ratio == pytest.approx(1e-3, rel=1e-2)
    assert found.fault(torch.float32) is not None
    assert found.fault(torch.bfloat16) is None


def test_a_value_that_is_no_number_is_a_fault():
    good = preflight(DPO(), fresh())
    assert replace(good, largest_ratio=math.nan).fault(torch.float32) is not None
    assert replace(good, loss=math.nan).fault(torch.float32) is not None


def test_a_loss_that_labels_do_not_predict_is_a_fault():
    fault = replace(preflight(DPO(), fresh()), loss=0.7).fault(torch.float32)
    assert fault is not None
    assert "0.700000" in fault
    assert "0.693147" in fault


def test_dropout_in_training_mode_does_not_disturb_the_check():
    model = fresh()
    model.train()
    assert preflight(DPO(), model).fault(torch.float32) is None
    assert model.training


def test_the_layouts_of_a_model_that_can_share_do_not_differ():
    model = adapted("gemma3")
    for group in ragged_groups():
        assert layout_difference(model, group, "ragged", 0) < LOGP_TOLERANCE[torch.float32]


def test_a_mask_that_is_wrong_shows_in_the_difference(monkeypatch: pytest.MonkeyPatch):
    group = max(ragged_groups(), key=lambda g: g.lengths()[0])
    monkeypatch.setattr(attention, "within", lambda batch, window: torch.tensor(True))
    assert (
        layout_difference(adapted("gemma3"), group, "shared", 0)
        > 10 * LOGP_TOLERANCE[torch.float32]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_to_its_stated_bounds(dtype: torch.dtype):
    base = tiny_model("llama", dtype=dtype)
    add_scored_forward(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).eval()
    found = preflight(DPO(), model)
    assert found.fault(dtype) is None
    for group in ragged_groups():
        assert layout_difference(model, group, "ragged", 0) < LOGP_TOLERANCE[dtype]
