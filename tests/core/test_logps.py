"""Log-probs from chunks of the vocabulary equal those from whole logits, which are never built."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from alignment.core import logps as module
from alignment.core.logps import HeadTransform, token_logps
from alignment.core.packing import pack
from alignment.core.scoring import add_scored_forward, policy_logps
from tests.core.allocations import Allocations, peak_bytes
from tests.core.batches import ragged_groups
from tests.tiny import tiny_config, tiny_model

TRANSFORMS = (
    HeadTransform(),
    HeadTransform(scale=0.3),
    HeadTransform(softcap=2.0),
    HeadTransform(scale=1.7, softcap=1.5),
)


class Head(NamedTuple):
    """Random hidden states, a head and targets."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither divides the sizes that tests use."""
    monkeypatch.setattr(module, "CHUNKS", {"cpu": (4, 10)})


def head(
    tokens: int = 11, vocabulary: int = 37, size: int = 7, dtype: torch.dtype = torch.float64
) -> Head:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[:2] = torch.tensor([0, vocabulary - 1])  # both ends of the vocabulary
    return Head(draw(tokens, size), draw(vocabulary, size), draw(vocabulary), targets)


def dense(inputs: Head, bias: Tensor | None, transform: HeadTransform) -> Tensor:
    """By the whole logits."""
    logits = inputs.hidden @ inputs.weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * (logits / transform.softcap).tanh()
    return logits.log_softmax(-1).gather(1, inputs.targets[:, None]).squeeze(1)


def gradients(logps: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1)).to(logps)
    return list(torch.autograd.grad(logps, leaves, upstream))


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("trained", ["hidden", "weight", "bias", "all"])
def test_chunks_equal_dense_in_value_and_gradients(
    transform: HeadTransform, with_bias: bool, trained: str
):
    """`hidden` alone is a frozen head; a frozen hidden state with a trained head occurs when the
    layers below are frozen.
    """
    if trained == "bias" and not with_bias:
        trained = "all"
    inputs = head()
    leaves = [
        tensor.requires_grad_()
        for name, tensor in zip(("hidden", "weight", "bias"), inputs, strict=False)
        if trained in (name, "all") and (name != "bias" or with_bias)
    ]
    bias = inputs.bias if with_bias else None
    expected = dense(inputs, bias, transform)
    got = token_logps(inputs.hidden, inputs.weight, inputs.targets, bias, transform)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(got, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (1, 37), (4, 10), (5, 11), (9, 3)])
def test_any_size_will_do(tokens: int, vocabulary: int):
    """One token, one word, exactly a chunk, one more than a chunk, less than a chunk."""
    inputs = head(tokens + 1, vocabulary)
    inputs = inputs._replace(hidden=inputs.hidden[1:], targets=inputs.targets[1:])
    inputs.hidden.requires_grad_()
    expected = dense(inputs, None, HeadTransform())
    got = token_logps(inputs.hidden, inputs.weight, inputs.targets)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    (mine,), (theirs,) = gradients(got, [inputs.hidden]), gradients(expected, [inputs.hidden])
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_autograd_agrees_with_finite_differences(transform: HeadTransform, frozen: bool):
    inputs = head(5, 13, 3)
    inputs.hidden.requires_grad_()
    inputs.weight.requires_grad_(not frozen)
    inputs.bias.requires_grad_(not frozen)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return token_logps(hidden, weight, inputs.targets, bias, transform)

    assert torch.autograd.gradcheck(function, (inputs.hidden, inputs.weight, inputs.bias))


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_half_precision_is_accumulated_in_float32(frozen: bool):
    """Values are as exact as float32 makes them from the rounded inputs; gradients are rounded
    once, to 8 bits: 2^-8 = 0.004.
    """
    low = head(33, 101, 24, torch.bfloat16)
    high = Head(low.hidden.float(), low.weight.float(), low.bias.float(), low.targets)
    for inputs in (low, high):
        inputs.hidden.requires_grad_()
        inputs.weight.requires_grad_(not frozen)
    got = token_logps(low.hidden, low.weight, low.targets, low.bias)
    expected = dense(high, high.bias, HeadTransform())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    count = 1 if frozen else 2
    pairs = zip(
        gradients(got, list(low[:count])), gradients(expected, list(high[:count])), strict=True
    )
    for mine, theirs in pairs:
        assert mine.dtype == torch.bfloat16
        assert float((mine.float() - theirs).norm() / theirs.norm()) < 4e-3


def test_float32_inputs_give_float32_and_float64_inputs_float64():
    for dtype in (torch.float32, torch.float64):
        inputs = head(dtype=dtype)
        assert token_logps(inputs.hidden, inputs.weight, inputs.targets).dtype == dtype


@pytest.mark.usefixtures("_small_chunks")
def test_logits_far_apart_neither_overflow_nor_vanish():
    """exp(1000) is beyond any float; a target 2000 nats below the top still has its log-prob."""
    hidden = torch.tensor([[1000.0], [1000.0]], requires_grad=True)
    weight = torch.linspace(-1, 1, 37)[:, None]
    logps = token_logps(hidden, weight, torch.tensor([36, 0]))
    logps.sum().backward()
    assert logps.tolist() == pytest.approx([0.0, -2000.0])
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_a_nearly_certain_token_keeps_its_digits():
    """log p = -log(1 + exp(-10)) = -4.5399e-5 in float32, beside logits of 100."""
    weight = torch.tensor([[100.0], [90.0]])
    (logp,) = token_logps(torch.ones(1, 1), weight, torch.tensor([0])).tolist()
    assert logp == pytest.approx(-4.5399e-5, rel=1e-3)


def test_a_target_that_the_head_does_not_have_gets_no_number():
    inputs = head()
    inputs.targets[3] = len(inputs.weight)
    inputs.weight.requires_grad_()
    found = token_logps(inputs.hidden, inputs.weight, inputs.targets)
    assert found.isnan().tolist() == [index == 3 for index in range(len(found))]


def test_nothing_is_kept_for_a_backward_that_will_not_come():
    inputs = head()
    assert not token_logps(inputs.hidden, inputs.weight, inputs.targets).requires_grad
    inputs.hidden.requires_grad_()
    with torch.no_grad():
        assert not token_logps(inputs.hidden, inputs.weight, inputs.targets).requires_grad


@pytest.mark.parametrize("broken", ["targets", "weight"])
def test_shapes_that_do_not_fit_are_named(broken: str):
    inputs = head()
    wrong = inputs._replace(**{broken: getattr(inputs, broken)[..., :-1]})
    with pytest.raises(ValueError, match=r"hidden \(11, 7\)"):
        token_logps(wrong.hidden, wrong.weight, wrong.targets)


# ---- What models do to their logits ----


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, HeadTransform()),
        ({"logit_scale": 0.0625}, HeadTransform(scale=0.0625)),
        ({"lm_head_multiplier": 0.5}, HeadTransform(scale=0.5)),
        ({"logits_scaling": 8.0}, HeadTransform(scale=0.125)),
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, HeadTransform(scale=8.0)),
        ({"final_logit_softcapping": 30.0}, HeadTransform(softcap=30.0)),
        ({"final_logit_softcapping": None, "logit_scale": None}, HeadTransform()),
    ],
)
def test_the_transform_is_read_from_the_configuration(
    fields: dict[str, Any], expected: HeadTransform
):
    config = tiny_config("llama")
    for name, value in fields.items():
        setattr(config, name, value)
    assert HeadTransform.of_config(config) == expected


def test_the_transform_of_a_model_is_part_of_its_log_probs():
    """Gemma-3's own forward caps its logits."""
    model = tiny_model("gemma3", final_logit_softcapping=0.5)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        own = model(input_ids=ids).logits.log_softmax(-1)
        assert float(own.exp().max()) < 0.02
        hidden = model.model(input_ids=ids).last_hidden_state[0, :-1]
        weight = model.get_output_embeddings().weight
        transform = HeadTransform.of_config(model.config)
        got = token_logps(hidden, weight, ids[0, 1:], transform=transform)
    torch.testing.assert_close(got, own[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1))


# ---- Memory ----

VOCABULARY = 32_000


def large_head(tokens: int, frozen: bool) -> Head:
    inputs = head(tokens, VOCABULARY, 16, torch.float32)
    inputs.hidden.requires_grad_()
    inputs.weight.requires_grad_(not frozen)
    inputs.bias.requires_grad_(not frozen)
    return inputs


def forward_and_backward(inputs: Head, transform: HeadTransform | None = None) -> None:
    hidden, weight, bias, targets = inputs
    token_logps(hidden, weight, targets, bias, transform).sum().backward()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_no_tensor_of_tokens_by_vocabulary_is_ever_alive(frozen: bool):
    """Nor a quarter of one, forward or backward."""
    inputs = large_head(600, frozen)
    with Allocations() as made:
        forward_and_backward(inputs, HeadTransform(0.5, 2.0))
    assert 0 < made.largest < 600 * VOCABULARY / 4, made.shape


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_what_is_alive_at_once_is_less_than_a_quarter_of_the_logits(frozen: bool):
    """Small pieces that are all kept would be as bad as one large tensor."""
    inputs = large_head(1200, frozen)
    assert 0 < peak_bytes(lambda: forward_and_backward(inputs)) < 4 * 1200 * VOCABULARY / 4


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_no_logits_are_built_in_a_whole_step_of_a_model(frozen: bool):
    model = tiny_model("llama", vocab_size=VOCABULARY)
    add_scored_forward(model)
    model.lm_head.weight.requires_grad_(not frozen)
    groups = [group for seed in range(4) for group in ragged_groups(seed)]
    batch = pack(groups, "shared", 0)
    tokens = len(batch.targets)
    with Allocations() as made:
        policy_logps(model, batch).sum().backward()
    assert made.largest < tokens * VOCABULARY / 4, made.shape
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_watch_would_see_logits_in_forward_and_backward():
    inputs = head(40, 50, 4, torch.float32)
    inputs.hidden.requires_grad_()
    with Allocations() as made:
        loss = dense(inputs, None, HeadTransform()).sum()
    assert made.largest == 40 * 50
    with Allocations() as made:
        loss.backward()
    assert made.largest == 40 * 50
    assert peak_bytes(lambda: dense(inputs, None, HeadTransform())) >= 4 * 2 * 40 * 50
