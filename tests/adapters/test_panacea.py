"""Panacea: singular values of which the preference sets the last, so that one adapter has many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from alignment.adapters import adapter_config
from alignment.adapters.base import set_preference
from alignment.adapters.panacea import PanaceaLayer
from alignment.cli import UserError
from alignment.objectives.panacea import Panacea
from tests.adapters.shared import IDS, adapted, loaded, logits, saved, trained
from tests.tiny import tiny_model
from tests.trainers.runs import build, logged

ROWS = [
    {
        "prompt": f"{index}: what is it?",
        "responses": [" a bird, I believe", " a fish", " a beetle of some kind"],
        "aspects": [[1.0, 0.2], [0.5, 0.9 if index % 2 else None], [0.1, 0.4]],
    }
    for index in range(8)
]


def test_a_weight_changes_by_u_times_its_singular_values_times_v(tmp_path: Path):
    """W = W_0 + U diag(sigma, s lambda) V^T with lambda = (3, 1) / 4, put into the base weights."""
    model = loaded(saved(adapted("panacea", moved=0.1), tmp_path), preference=[3, 1])
    base = tiny_model()
    for name, layer in model.named_modules():
        if isinstance(layer, PanaceaLayer):
            left, right, values, scale = (
                getattr(layer, f"panacea_{part}")["default"].detach()
                for part in ("left", "right", "values", "scales")
            )
            diagonal = torch.diag(torch.cat([values, scale * torch.tensor([0.75, 0.25])]))
            weight = base.get_submodule(name.removeprefix("base_model.model.")).weight
            weight.data += left @ diagonal @ right.T
    assert torch.allclose(logits(model), logits(base), atol=1e-4)


def test_all_linear_layers_but_the_head_are_adapted_unless_some_are_named():
    names = {name.rsplit(".", 2)[0].rpartition(".")[2] for name in trained(adapted("panacea"))}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names == every
    config = adapter_config("panacea", {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]})
    model = get_peft_model(tiny_model(), config)
    assert sum(isinstance(module, PanaceaLayer) for module in model.modules()) == 3


def test_u_and_v_have_orthonormal_columns_at_the_start():
    layer = adapted("panacea").get_base_model().model.layers[0].self_attn.q_proj
    for part in (layer.panacea_left["default"], layer.panacea_right["default"]):
        assert torch.allclose(part.T @ part, torch.eye(5), atol=1e-5)


@pytest.mark.parametrize("preference", [[1.0, 0.0], [0.0, 1.0], None])
def test_merged_it_is_the_model_at_its_preference(preference: Any, tmp_path: Path):
    folder = saved(adapted("panacea", moved=0.1), tmp_path)
    model = loaded(folder, **({} if preference is None else {"preference": preference}))
    expected = logits(model)
    model.merge_adapter()
    assert torch.allclose(logits(model), expected, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(logits(model), expected, atol=1e-5)
    merged = model.merge_and_unload(safe_merge=True)
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    other = loaded(folder, preference=[0.3, 0.7])
    assert not torch.allclose(logits(other), expected, atol=1e-3)


def test_a_preference_counts_by_its_proportions(tmp_path: Path):
    folder = saved(adapted("panacea", moved=0.1), tmp_path)
    assert torch.equal(
        logits(loaded(folder, preference=[6, 2])), logits(loaded(folder, preference=[0.75, 0.25]))
    )
    assert torch.equal(logits(loaded(folder)), logits(loaded(folder, preference=[1, 1])))


@pytest.mark.parametrize("preference", [[1.0], [-1.0, 2.0], [0.0, 0.0], "half", [1.0, 1.0, 1.0]])
def test_a_preference_off_the_simplex_is_refused(preference: object, tmp_path: Path):
    folder = saved(adapted("panacea"), tmp_path)
    with pytest.raises(UserError, match="adapter_kwargs: preference is"):
        loaded(folder, preference=preference)


@pytest.mark.parametrize(
    ("family", "targets", "told"),
    [
        (
            "gpt2",
            ["c_attn"],
            "`transformer.h.0.attn.c_attn` is a Conv1D; Panacea adapts linear lay",
        ),
        ("gpt2", None, "`gpt2` has no linear layer but its head"),
        ("llama", ["c_attn"], "the model has no module `c_attn`"),
    ],
)
def test_an_architecture_that_it_does_not_fit_is_told_in_one_line(
    family: str, targets: Any, told: str
):
    config = adapter_config("panacea", {"target_modules": targets})
    with pytest.raises(ValueError, match=told):
        get_peft_model(tiny_model(family), config)


# ---- Steered while it is trained ----


def test_every_step_is_computed_at_its_own_preference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same loss as with an adapter set by hand, for the gradient that a step takes."""
    seen: list[tuple[float, ...]] = []

    def noted(model: Any, preference: tuple[float, ...]) -> None:
        seen.append(tuple(preference))
        set_preference(model, preference)

    monkeypatch.setattr("alignment.trainers.base.set_preference", noted)
    objective = Panacea()
    trainer = build(
        tmp_path,
        ROWS,
        model=tiny_model(),
        peft_config=adapter_config("panacea"),
        objective=objective,
        eval_dataset=ROWS,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    drawn = [objective.steering(trainer._progress()._replace(step=step)) for step in range(4)]
    order = list(dict.fromkeys(seen))
    assert order == [drawn[0], drawn[1], (0.5, 0.5), drawn[2], drawn[3]]
    assert logged(trainer)[0] == pytest.approx(0.693147, abs=1e-5)
    layer = next(m for m in trainer.model.modules() if isinstance(m, PanaceaLayer))
    assert all(scale.item() != 0 for scale in layer.panacea_scales.values())


def test_an_objective_that_steers_needs_an_adapter_that_is_steered(tmp_path: Path):
    with pytest.raises(UserError, match="no adapter of the policy takes a preference"):
        build(tmp_path, ROWS, objective=Panacea()).train()
    config = adapter_config("panacea", {"dimensions": 3})
    with pytest.raises(UserError, match="weighs 2 dimensions and the adapter 3: set `dimensions`"):
        build(tmp_path, ROWS, peft_config=config, objective=Panacea()).train()


def test_a_model_answers_differently_by_preference(tmp_path: Path):
    folder = saved(adapted("panacea", moved=0.5), tmp_path)
    settings = {"max_new_tokens": 12, "do_sample": False}
    answers = [
        loaded(folder, preference=preference).generate(IDS, **settings)
        for preference in ([1, 0], [0, 1])
    ]
    assert not torch.equal(*answers)
