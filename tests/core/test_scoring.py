"""Both layouts give each response the log-probs and gradients it has alone, for every family."""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.compat import enable_checkpointing
from alignment.core import attention, packing
from alignment.core.attention import attention_mask
from alignment.core.packing import Layout, PackedBatch, TokenGroup, pack
from alignment.core.ragged import takes_ragged
from alignment.core.scoring import (
    REFERENCE_ADAPTER,
    Scorer,
    add_scored_forward,
    add_value_head,
    evaluating,
    label_terms,
    policy_logps,
)
from alignment.objectives.apo import APO
from alignment.objectives.base import (
    DivergenceSpec,
    GroupTerms,
    LogpsUse,
    LossTerm,
    Need,
    Objective,
    ObjectiveOutput,
    Progress,
)
from alignment.objectives.distillm2 import DistiLLM2
from alignment.objectives.dpo import DPO
from alignment.objectives.sft import SFT
from tests.core.batches import adapted, adapter_gradient, ragged_groups, token_group
from tests.tiny import FAMILIES, WINDOW, tiny_model

LAYOUTS: tuple[Layout, ...] = ("ragged", "shared", "plain")
NO_WINDOW = ("llama", "qwen2", "qwen3", "smollm3", "gpt2")
PAD = 0


def alone(model: nn.Module, groups: list[TokenGroup]) -> Tensor:
    """(N,) log-probs from the model's own logits, one unpadded sequence at a time."""
    logps = []
    for group in groups:
        for context, response in zip(group.contexts, group.responses, strict=True):
            ids = torch.tensor([[*group.prefix, *context, *response]])
            logits = model(input_ids=ids).logits[0, -len(response) - 1 : -1]
            targets = torch.tensor(response)[:, None]
            logps.append(logits.log_softmax(-1).gather(1, targets).squeeze(1))
    return torch.cat(logps)


def layouts(model: PeftModel) -> list[Layout]:
    """Those that the model's attention can compute: an eager one takes masks alone."""
    return [kind for kind in LAYOUTS if kind != "ragged" or takes_ragged(model.get_base_model())]


SHARING = pytest.mark.parametrize("layout", ["ragged", "shared"])


def skip_where_masks_are_needed(model: PeftModel, layout: Layout) -> None:
    if layout not in layouts(model):
        pytest.skip("its attention takes masks alone")


@functools.cache
def family_model(family: str) -> PeftModel:
    """For tests that leave it as it is."""
    return adapted(family)


def scored_gradient(model: PeftModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-probs, and the adapter's gradient of their sum under random weights."""
    logps = policy_logps(model, batch)
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0))
    (logps * weights).sum().backward()
    return logps.detach(), adapter_gradient(model)


def largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max())


def relative(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


# ---- Layouts ----


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_agrees_with_the_models_own_logits(family: str):
    """Without any of our masks: each response alone, logits, log-softmax, gather."""
    model, groups = family_model(family), ragged_groups()
    with torch.no_grad():
        expected = alone(model, groups)
        for layout in layouts(model):
            assert largest(policy_logps(model, pack(groups, layout, PAD)), expected) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@SHARING
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layouts_agree_in_values_and_gradients(
    family: str, layout: Layout, checkpointing: bool
):
    model, groups = adapted(family), ragged_groups()
    skip_where_masks_are_needed(model, layout)
    plain, plain_gradient = scored_gradient(model, pack(groups, "plain", PAD))
    passes = []
    (norm,) = (m for n, m in model.named_modules() if n.endswith((".0.input_layernorm", ".0.ln_1")))
    norm.register_forward_pre_hook(lambda *_: passes.append(1))
    if checkpointing:
        model.enable_input_require_grads()
        enable_checkpointing(model.get_base_model())
        model.train()
    shared, shared_gradient = scored_gradient(model, pack(groups, layout, PAD))
    assert len(passes) == (2 if checkpointing else 1)
    assert largest(shared, plain) < 1e-5
    assert relative(shared_gradient, plain_gradient) < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@SHARING
@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_of_any_size_agrees_by_itself(family: str, layout: Layout, size: int):
    rng = random.Random(size)
    lengths = [rng.randint(1, 2 * WINDOW) for _ in range(size)]
    group = token_group(rng, WINDOW + 5, lengths)
    model = family_model(family)
    skip_where_masks_are_needed(model, layout)
    shared, shared_gradient = scored_gradient(model, pack([group], layout, PAD))
    plain, plain_gradient = scored_gradient(model, pack([group], "plain", PAD))
    assert largest(shared, plain) < 1e-5
    assert relative(shared_gradient, plain_gradient) < 1e-5


@SHARING
@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_of_one_position_agrees(family: str, layout: Layout):
    """One query is a case of its own where heads share keys: the second response has two tokens."""
    group = token_group(random.Random(2), WINDOW + 5, [9, 2, 4])
    model = family_model(family)
    skip_where_masks_are_needed(model, layout)
    found = policy_logps(model, pack([group], layout, PAD))
    assert largest(found, policy_logps(model, pack([group], "plain", PAD))) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_over_several_padded_rows_agree_too(family: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "best_row_length", max)
    model, groups = family_model(family), ragged_groups()
    batch = pack(groups, "shared", PAD)
    assert 1 < batch.input_ids.shape[0] < len(groups)
    assert (batch.sequence == packing.PADDING).any()
    shared, shared_gradient = scored_gradient(model, batch)
    plain, plain_gradient = scored_gradient(model, pack(groups, "plain", PAD))
    assert largest(shared, plain) < 1e-5
    assert relative(shared_gradient, plain_gradient) < 1e-5


def difference(family: str, batch: PackedBatch) -> float:
    """Of a shared batch from the plain layout."""
    model = family_model(family)
    with torch.no_grad():
        plain = policy_logps(model, pack(ragged_groups(), "plain", PAD))
        return largest(policy_logps(model, batch), plain)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(NO_WINDOW)))
def test_these_groups_would_show_a_mask_without_its_window(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "within", lambda batch, window: torch.tensor(True))
    assert difference(family, pack(ragged_groups(), "shared", PAD)) > 1e-2


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(NO_WINDOW)))
def test_these_groups_would_show_a_window_over_places_in_the_row(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    def by_place(batch: PackedBatch, window: int) -> Tensor:
        places = torch.arange(batch.input_ids.shape[1])
        return (places[:, None] - places < window)[None]

    monkeypatch.setattr(attention, "within", by_place)
    assert difference(family, pack(ragged_groups(), "shared", PAD)) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_these_groups_would_show_positions_that_do_not_restart(family: str):
    batch = pack(ragged_groups(), "shared", PAD)
    running = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    assert difference(family, replace(batch, position_ids=running)) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_these_groups_would_show_branches_that_see_each_other(family: str):
    batch = pack(ragged_groups(), "shared", PAD)
    open_branches = replace(batch, branch=torch.zeros_like(batch.branch))
    # Several groups in the row, so a mask is built although no branch is left.
    assert not open_branches.one_sequence_per_row
    assert difference(family, open_branches) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_these_groups_would_show_groups_that_see_each_other(family: str):
    batch = pack(ragged_groups(), "shared", PAD)
    assert difference(family, replace(batch, sequence=torch.zeros_like(batch.sequence))) > 1e-2


# ---- The replaced forward ----


def test_any_other_call_is_answered_as_before(llama: PreTrainedModel):
    ids = torch.tensor([[5, 6, 7]])
    before = llama(input_ids=ids).logits
    generated = llama.generate(ids, max_new_tokens=4, do_sample=False)
    add_scored_forward(llama)
    assert torch.equal(llama(input_ids=ids).logits, before)
    assert torch.equal(llama.generate(ids, max_new_tokens=4, do_sample=False), generated)


def test_hooks_of_the_head_fire_and_its_own_forward_comes_back(llama: PreTrainedModel):
    """Engines gather a sharded head in such hooks."""
    add_scored_forward(llama)
    head = llama.get_output_embeddings()
    calls = []
    head.register_forward_pre_hook(lambda *_: calls.append("before"))
    head.register_forward_hook(lambda *_: calls.append("after"))
    policy_logps(llama, pack(ragged_groups(), "shared", PAD))
    assert calls == ["before", "after"]
    assert "forward" not in vars(head)


def test_the_heads_forward_comes_back_after_an_error_too(llama: PreTrainedModel):
    add_scored_forward(llama)
    batch = pack(ragged_groups(), "shared", PAD)
    with pytest.raises(ValueError, match="do not fit"):
        policy_logps(llama, replace(batch, targets=batch.targets[:-1]))
    assert llama(input_ids=torch.tensor([[5]])).logits.shape == (1, 1, 320)


def test_a_head_that_is_trained_as_a_whole_is_the_policys_and_not_the_references():
    base = tiny_model("llama")
    add_scored_forward(base)
    batch = pack(ragged_groups(), "shared", PAD)
    before = policy_logps(base, batch).detach()
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        head: Any = model.get_base_model().get_output_embeddings()
        head.modules_to_save["default"].weight.mul_(1.5)
    moved = policy_logps(model, batch)
    moved.sum().backward()
    assert largest(moved, before) > 1e-2
    assert float(head.modules_to_save["default"].weight.grad.abs().max()) > 0
    scorer = Scorer(DPO(), ref_model=None, unwrap=lambda m: m)
    assert largest(scorer.reference_logps(model, batch), before) < 1e-6


# ---- Policy and reference ----


def pairs(**labels: Any) -> list[TokenGroup]:
    rng = random.Random(3)
    return [token_group(rng, 9, [10, 4], role=[1, -1], **labels) for _ in range(2)]


def scorer_of(objective: Any, **options: Any) -> Scorer:
    return Scorer(objective, **{"ref_model": None, "unwrap": lambda model: model, **options})


def test_the_adapter_switched_off_is_the_model_it_sits_on():
    model, batch = adapted("llama"), pack(pairs(), "shared", PAD)
    terms = scorer_of(DPO())(model, batch)
    bare = tiny_model("llama")
    assert terms.ref_logps is not None
    with torch.no_grad():
        assert largest(terms.ref_logps, alone(bare, pairs())) < 1e-5
        assert largest(terms.logps, alone(model, pairs())) < 1e-5
    assert largest(terms.logps, terms.ref_logps) > 1e-2
    assert terms.logps.requires_grad
    assert not terms.ref_logps.requires_grad


def test_a_frozen_model_is_the_reference_where_one_is_given():
    frozen = tiny_model("llama", seed=5)
    add_scored_forward(frozen)
    batch = pack(pairs(), "shared", PAD)
    terms = scorer_of(APO(), ref_model=frozen)(adapted("llama"), batch)
    assert terms.ref_logps is not None
    with torch.no_grad():
        assert largest(terms.ref_logps, alone(frozen, pairs())) < 1e-5
    assert not terms.ref_logps.requires_grad


def test_stored_values_are_the_reference_before_anything_else():
    stored = [[-0.5] * 10, [-1.5] * 4]
    batch = pack(pairs(ref_logps=stored), "shared", PAD)
    terms = scorer_of(DPO())(adapted("llama"), batch)
    assert terms.ref_logps is not None
    assert terms.ref_logps.tolist() == [*stored[0], *stored[1]] * 2


def test_an_adapter_that_was_trained_before_is_compared_with_its_frozen_copy():
    model, batch = adapted("llama"), pack(pairs(), "shared", PAD)
    start = policy_logps(model, batch).detach()
    model.add_adapter(REFERENCE_ADAPTER, model.peft_config["default"])
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if ".default." in name:
                frozen = weights[name.replace(".default.", f".{REFERENCE_ADAPTER}.")]
                frozen.copy_(weight)
                weight.add_(0.05)
    trainable = [name for name, weight in weights.items() if weight.requires_grad]
    terms = scorer_of(DPO())(model, batch)
    assert terms.ref_logps is not None
    assert largest(terms.ref_logps, start) < 1e-6
    assert largest(terms.logps, start) > 1e-3
    assert model.active_adapter == "default"
    trained = [name for name, w in model.named_parameters() if w.requires_grad]
    assert [name for name in trained if ".default." in name] == [
        name for name in trainable if ".default." in name
    ]


def test_no_reference_is_computed_where_the_objective_asks_for_none(llama: PreTrainedModel):
    add_scored_forward(llama)
    assert scorer_of(SFT())(llama, pack(pairs(), "shared", PAD)).ref_logps is None


def test_a_missing_reference_is_named_with_the_remedies(llama: PreTrainedModel):
    add_scored_forward(llama)
    with pytest.raises(ValueError, match=r"DPO needs a reference: .*ref_model.*use_peft"):
        scorer_of(DPO())(llama, pack(pairs(), "shared", PAD))


def test_the_reference_is_scored_without_dropout_and_the_policy_trains_on():
    model = adapted("gpt2", resid_pdrop=0.5)
    batch = pack(pairs(), "shared", PAD)
    scorer = scorer_of(DPO())
    expected = scorer.reference_logps(model, batch)
    model.train()
    assert torch.equal(scorer.reference_logps(model, batch), expected)
    assert model.training
    assert largest(policy_logps(model, batch), policy_logps(model, batch)) > 1e-3


@contextmanager
def interrupted() -> Iterator[None]:
    with pytest.raises(RuntimeError, match="stop"):
        yield


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_a_model_comes_back_even_after_an_error(llama: PreTrainedModel, training: bool):
    llama.train(training)
    with interrupted(), evaluating(llama):
        assert not llama.training
        raise RuntimeError("stop")
    assert llama.training == training


# ---- Labels and counts ----


def test_terms_carry_the_labels_of_the_batch():
    labels = {"reward": [1.0, 0.0], "weight": [0.5, 2.0]}
    group = replace(pairs(**labels)[0], twin=[-1, 0])
    batch = pack([group], "shared", PAD)
    terms = label_terms(batch, logps=torch.zeros(14))
    assert terms.role.tolist() == [1, -1]
    assert terms.reward is batch.reward
    assert terms.weight is batch.weight
    assert terms.twin is batch.twin
    assert terms.response_of_token.tolist() == [0] * 10 + [1] * 4


@pytest.mark.parametrize("objective", [SFT(), DPO(), APO(form="unpaired")], ids=repr)
def test_counts_are_known_without_a_model(objective: Any):
    model, batch = adapted("llama"), pack(pairs(), "shared", PAD)
    scorer = scorer_of(objective)
    counts = scorer.counts(batch)
    assert torch.equal(counts, objective(scorer(model, batch)).counts())
    assert counts.tolist() == {"SFT": [20.0], "DPO": [2.0], "APO": [4.0]}[type(objective).__name__]


def test_a_filler_counts_for_nothing():
    assert scorer_of(DPO()).counts(pack(pairs(), "shared", PAD, real=False)).tolist() == [0.0]


# ---- Teacher ----


def distilled(
    model: PeftModel, layout: Layout, objective: DistiLLM2 | None = None
) -> tuple[GroupTerms, PreTrainedModel]:
    teacher = tiny_model("qwen3", seed=7)
    add_scored_forward(teacher)
    batch = pack(pairs(), layout, PAD)
    return scorer_of(objective or DistiLLM2(), teacher=teacher)(model, batch), teacher


def test_a_teacher_of_another_family_is_scored_on_the_same_tokens():
    terms, teacher = distilled(adapted("llama"), "shared")
    assert terms.teacher_logps is not None
    with torch.no_grad():
        assert largest(terms.teacher_logps, alone(teacher, pairs())) < 1e-5
    assert not terms.teacher_logps.requires_grad
    assert all(weight.grad is None for weight in teacher.parameters())


class InTwoWalks(DistiLLM2):
    """Says of its log-probs that it may need their gradient."""

    def logps_use(self, terms: GroupTerms) -> LogpsUse:
        return "gradient"


def test_one_walk_over_the_vocabulary_gives_what_two_give():
    """The fixed skew needs no log-probs: they come beside the divergences, without gradient."""
    model = adapted("llama")
    one, _ = distilled(model, "shared", DistiLLM2(skew="fixed"))
    two, _ = distilled(model, "shared", InTwoWalks(skew="fixed"))
    assert two.logps.requires_grad
    assert not one.logps.requires_grad
    for name in ("logps", "teacher_logps", "divergences"):
        assert largest(getattr(one, name), getattr(two, name)) < 1e-5
    gradients = []
    for terms in (one, two):
        DistiLLM2(skew="fixed")(terms).loss().backward()
        gradients.append(adapter_gradient(model))
    assert relative(*gradients) < 1e-6


@pytest.mark.parametrize(("form", "with_gradient"), [("paper", False), ("release", True)])
def test_a_skew_that_adapts_reads_the_log_probs_of_the_same_pass(
    form: Literal["paper", "release"], with_gradient: bool
):
    """The release's skew carries gradient into the log-probs, the paper's takes them as given."""
    state = {f"anchors/{side}": torch.tensor(1e-3) for side in ("chosen", "rejected")}
    model, teacher = adapted("llama"), tiny_model("qwen3", seed=7)
    add_scored_forward(teacher)
    objective, batch = DistiLLM2(form=form), pack(pairs(), "shared", PAD)
    scorer = scorer_of(objective, teacher=teacher)
    terms = scorer(model, batch, Progress(step=5, max_steps=9, epoch=1.5, epochs=3.0), state)
    assert terms.logps.requires_grad == with_gradient
    assert terms.teacher_logps is not None
    with torch.no_grad():
        assert largest(terms.teacher_logps, alone(teacher, pairs())) < 1e-5
        assert largest(terms.logps, policy_logps(model, batch)) < 1e-5
    ignored = replace(terms, state={})
    assert not torch.equal(objective(terms).parts["skews"], objective(ignored).parts["skews"])


def test_divergences_do_not_depend_on_the_layout():
    model = adapted("llama")
    losses, gradients = [], []
    for layout in LAYOUTS:
        terms, _ = distilled(model, layout)
        assert terms.divergences is not None
        losses.append(DistiLLM2()(terms).loss())
        losses[-1].backward()
        gradients.append(adapter_gradient(model))
    *sharing, plain = (float(loss.detach()) for loss in losses)
    assert sharing == pytest.approx([plain, plain], rel=1e-5)
    assert plain > 1e-3
    assert all(relative(gradient, gradients[-1]) < 1e-5 for gradient in gradients[:-1])


def test_a_ragged_batch_is_refused_by_attention_that_needs_masks():
    model = family_model("gpt_oss")
    with pytest.raises(ValueError, match="`eager` attention cannot compute ragged batches"):
        policy_logps(model, pack(ragged_groups(), "ragged", PAD))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_agrees_with_the_models_own_logits(family: str):
    """On the CPU it has a forward pass only; gemma3 has layers with and without a window."""
    model, groups = family_model(family), ragged_groups()
    flexible = tiny_model(family)
    flexible.set_attn_implementation("flex_attention")
    add_scored_forward(flexible)
    assert takes_ragged(flexible)
    base = model.get_base_model()
    with torch.no_grad(), model.disable_adapter():
        expected = alone(base, groups)
        for layout in ("ragged", "shared"):
            found = policy_logps(flexible, pack(groups, layout, PAD))
            assert largest(found, expected) < 1e-5


def test_nothing_of_the_square_of_a_row_is_made_for_a_ragged_batch():
    """Eight groups of 60 positions in one row of 480, whose mask would have 230400 entries."""
    rng = random.Random(0)
    groups = [token_group(rng, 20, [21, 21]) for _ in range(8)]
    batch = pack(groups, "ragged", PAD)
    assert batch.input_ids.shape == (1, 480)
    assert (batch.sequence != packing.PADDING).all()
    mask = cast(Any, attention_mask(batch, family_model("llama").config, torch.float32))
    assert mask.numel() == 1
    held = [part for _, part in mask.masked if part is not None]
    assert [tuple(part.shape) for part in held] == [(1, 1, 20, 40)] * 8


def test_a_model_that_takes_ragged_batches_still_generates_as_before(llama: PreTrainedModel):
    prompt = torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
    before = llama.generate(prompt, **settings)
    add_scored_forward(llama)
    assert takes_ragged(llama)
    assert torch.equal(llama.generate(prompt, **settings), before)


def test_a_missing_teacher_is_named_with_the_remedy(llama: PreTrainedModel):
    add_scored_forward(llama)
    with pytest.raises(ValueError, match="DistiLLM2 needs a teacher: set `teacher_model_name"):
        scorer_of(DistiLLM2())(llama, pack(pairs(), "shared", PAD))


# ---- Values, counts that read the policy, second models ----


@dataclass(frozen=True)
class Probe(Objective):
    """Reads everything there is; counts the tokens that the policy thinks unlikely."""

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"teacher", "second_teacher", "reference", "second_reference", "values"}
    )

    @property
    def counts_read_policy(self) -> bool:
        return True

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        skew = terms.logps.new_zeros(terms.num_responses)
        return (DivergenceSpec("expected_advantage", skew),)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        unlikely = (terms.logps < -5.5).to(terms.logps)
        sums = terms.logps.new_zeros(terms.num_groups)
        counts = sums.index_add(0, terms.group_of_token, unlikely)
        return ObjectiveOutput((LossTerm(sums, counts),))


def frozen_models() -> dict[str, PreTrainedModel]:
    names = ("ref_model", "second_ref_model", "teacher", "second_teacher")
    models = {name: tiny_model("llama", seed=seed) for seed, name in enumerate(names, 2)}
    for model in models.values():
        add_scored_forward(model)
    return models


def test_every_second_model_is_asked_and_the_value_head_is_read():
    model, batch, frozen = tiny_model("llama"), pack(pairs(), "shared", PAD), frozen_models()
    add_value_head(model)
    add_scored_forward(model)
    torch.nn.init.ones_(model.value_head.weight)
    terms = scorer_of(Probe(), **frozen)(model, batch)
    assert terms.second_ref_logps is not None
    with torch.no_grad():
        assert largest(terms.second_ref_logps, alone(frozen["second_ref_model"], pairs())) < 1e-5
    assert terms.divergences is not None
    assert terms.divergences.shape == (28, 1)
    assert terms.values is not None
    assert terms.values.std() > 0
    terms.values.sum().backward()
    assert model.value_head.weight.grad.abs().sum() > 0


def test_a_value_head_starts_at_zero():
    model = tiny_model("llama")
    add_value_head(model)
    add_scored_forward(model)
    values = model(packed=pack(pairs(), "shared", PAD)).token_values
    assert values.tolist() == [0.0] * 28


def test_a_value_is_read_from_the_last_hidden_state_as_the_docs_read_it():
    """At the last token of the answer, the one before the end of the turn."""
    model, group = tiny_model("llama"), token_group(random.Random(0), 4, [5])
    add_value_head(model)
    add_scored_forward(model)
    torch.nn.init.normal_(model.value_head.weight)
    values = model(packed=pack([group], "shared", PAD)).token_values
    ids = torch.tensor([[*group.prefix, *group.responses[0][:-1]]])
    hidden = model(ids, output_hidden_states=True).hidden_states[-1][:, -1]
    assert abs(float(values[-1] - model.value_head(hidden))) < 1e-5


def test_counts_that_read_the_policy_are_those_of_the_forward_pass():
    model, batch, frozen = tiny_model("llama"), pack(pairs(), "shared", PAD), frozen_models()
    add_value_head(model)
    add_scored_forward(model)
    scorer = scorer_of(Probe(), **frozen)
    counts = scorer.counts(batch, model=model)
    assert torch.equal(counts, Probe()(scorer(model, batch)).counts())
    assert 0 < float(counts) < 28
    filler = pack(pairs(), "shared", PAD, real=False)
    assert scorer.counts(filler, model=model).tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("second_teacher", "needs a second teacher: set `second_teacher_model_name_or_path`"),
        ("second_ref_model", "needs a second reference: set `second_ref_model_name_or_path`"),
    ],
)
def test_a_missing_second_model_is_named_with_the_remedy(name: str, told: str):
    model, frozen = tiny_model("llama"), frozen_models()
    add_value_head(model)
    add_scored_forward(model)
    del frozen[name]
    with pytest.raises(ValueError, match=told):
        scorer_of(Probe(), **frozen)(model, pack(pairs(), "shared", PAD))


def test_autocast_leaves_the_head_in_full_precision():
    """Rounded to bf16, log-probs of a float32 head would differ in the third digit."""
    model = tiny_model()
    add_scored_forward(model)
    batch = pack([TokenGroup.of([[5, 6]], [[7, 8, 2]], role=[0])], "plain", PAD)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logps = policy_logps(model, batch)
        hidden = model.base_model(input_ids=batch.input_ids).last_hidden_state
    logits = hidden.flatten(0, 1)[batch.predicts].float() @ model.lm_head.weight.T
    expected = logits.log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
