"""The formulas of contrasts: worked numbers, identities, limits; the vectors are run elsewhere."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.contrasts import available_contrasts, load_contrast
from alignment.contrasts.adacad import AdaCAD, divergence
from alignment.contrasts.adversarial import Adversarial
from alignment.contrasts.args import ARGS
from alignment.contrasts.base import Contrast, nucleus, plausible
from alignment.contrasts.contrastive import Contrastive
from alignment.contrasts.input import Input
from alignment.contrasts.linear_alignment import LinearAlignment
from alignment.contrasts.obrien_lewis import OBrienLewis

ROOT = Path(__file__).resolve().parents[2]
INF = math.inf
UNMASKED: list[Contrast] = [
    OBrienLewis(alpha=0.0),
    Input(alpha=0.0),
    AdaCAD(),
    LinearAlignment(top_p=1.0),
]
"""Those that give the first pass's own logits back where the second agrees with it."""
ZERO: list[Contrast] = [
    OBrienLewis(beta=0.0, alpha=0.0),
    Input(strength=0.0, alpha=0.0),
    Adversarial(alpha=0.0),
    LinearAlignment(rho=0.0, top_p=1.0),
    ARGS(top_k=100, weight=0.0),
]


def logits(seed: int, rows: int = 3, tokens: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, tokens, generator=generator, dtype=torch.float64)


def test_the_probability_is_the_experts_times_the_ratio_to_the_power_beta():
    expert, amateur = logits(0), logits(1)
    p_e, p_a = expert.softmax(-1), amateur.softmax(-1)
    expected = p_e * (p_e / p_a) ** 0.5
    found = OBrienLewis(beta=0.5, alpha=0.0)(expert, amateur).softmax(-1)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True))


def test_contrastive_forms_differ_by_constants_within_a_step():
    expert, amateur = logits(2), logits(3)
    scores = [
        Contrastive(form=form, amateur_temperature=0.5, alpha=None)(expert, amateur).softmax(-1)
        for form in ("beam", "sample", "greedy")
    ]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_adversarial_is_the_difference_without_one_plus():
    """2 - 0.4 * 1 = 1.6 and 1 - 0.4 * 3 = -0.2."""
    found = Adversarial(alpha=0.4)(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.6, -0.2]]))


def test_linear_alignment_extrapolates_in_the_top_p_set_of_the_principle():
    """p = .6, .3, .1: top-p 0.8 keeps two; (1 + 1) ln p - 1 ln q, q = .5, .4, .1."""
    principle = torch.tensor([[0.6, 0.3, 0.1]]).log()
    plain = torch.tensor([[0.5, 0.4, 0.1]]).log()
    found = LinearAlignment(rho=1.0, top_p=0.8)(principle, plain)
    expected = torch.tensor([[2 * math.log(0.6) - math.log(0.5), 2 * math.log(0.3), -INF]])
    expected[0, 1] -= math.log(0.4)
    torch.testing.assert_close(found, expected)


def test_input_is_the_rule_of_obrien_and_lewis_on_two_inputs():
    one, other = logits(4), logits(5)
    torch.testing.assert_close(
        Input(strength=0.7, alpha=0.2)(one, other), OBrienLewis(beta=0.7, alpha=0.2)(one, other)
    )


def test_the_divergence_of_disjoint_distributions_is_log_two():
    """JSD = ln 2 where no token is likely on both sides, 0 where the sides agree."""
    one, other = torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]])
    assert divergence(one, other).item() == pytest.approx(math.log(2))
    assert divergence(one, one).item() == 0.0


def test_each_row_of_a_batch_has_its_own_strength():
    context, plain = logits(6), logits(7)
    together = AdaCAD()(context, plain)
    alone = torch.cat([AdaCAD()(context[i : i + 1], plain[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)
    assert len(set(AdaCAD().strength(context, plain).tolist())) == 3


def test_args_adds_rewards_to_the_likeliest_tokens_alone():
    found = ARGS(top_k=2, weight=2.0)(
        torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[9.0, 0.5, 1.5]])
    )
    assert found.tolist() == [[-INF, 4.0, 5.0]]


@pytest.mark.parametrize("contrast", UNMASKED, ids=repr)
def test_equal_passes_give_the_first_back_bit_for_bit(contrast: Contrast):
    first = logits(8).float()
    assert torch.equal(contrast(first, first.clone()), first)


@pytest.mark.parametrize("contrast", ZERO, ids=repr)
def test_strength_zero_gives_the_first_back_bit_for_bit(contrast: Contrast):
    first = logits(9).float()
    assert torch.equal(contrast(first, logits(10).float()), first)


@pytest.mark.parametrize("name", [n for n in available_contrasts() if n != "args"])
def test_a_token_that_the_first_pass_rules_out_stays_ruled_out(name: str):
    first, second = logits(11), logits(12)
    first[:, 2] = second[:, 2] = -INF
    found = load_contrast(name)(first, second)
    assert (found[:, 2] == -INF).all()
    assert not found.isnan().any()


@pytest.mark.parametrize("name", available_contrasts())
def test_the_order_of_rows_does_not_matter(name: str):
    first, second = logits(13), logits(14)
    contrast = load_contrast(name)
    assert torch.equal(contrast(first, second).flip(0), contrast(first.flip(0), second.flip(0)))


def test_plausible_keeps_the_likeliest_tokens_it_is_told_to():
    row = torch.tensor([[9.0, 1.0, 0.0]])
    assert plausible(row, 0.1).tolist() == [[True, False, False]]
    assert plausible(row, 0.1, min_tokens_to_keep=2).tolist() == [[True, True, False]]
    assert plausible(row, 0.1, min_tokens_to_keep=9).all()
    assert plausible(row, 0.0).all()


def test_the_nucleus_holds_the_token_that_crosses_the_bound():
    row = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert nucleus(row, 0.5).tolist() == [[False, True, False]]
    assert nucleus(row, 0.51).tolist() == [[False, True, True]]
    assert nucleus(row, 0.81).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OBrienLewis(beta=-0.5), "OBrienLewis.beta is -0.5: it must be at least 0"),
        (lambda: OBrienLewis(alpha=1.5), "OBrienLewis.alpha is 1.5: it must be .*at most 1"),
        (lambda: Contrastive(amateur_weight=-1.0), "amateur_weight is -1.0: it must be at least"),
        (lambda: Contrastive(amateur_temperature=0.0), "amateur_temperature is 0.0: .* above 0"),
        (lambda: Contrastive(alpha=2.0), "Contrastive.alpha is 2.0"),
        (lambda: Adversarial(alpha=1.2), "Adversarial.alpha is 1.2: it must be .* at most 1"),
        (lambda: Input(strength=-1.0), "Input.strength is -1.0"),
        (lambda: AdaCAD(threshold=1.0), "AdaCAD.threshold is 1.0: it must be .*at most 0.69"),
        (lambda: AdaCAD(top_p=0.0), "AdaCAD.top_p is 0.0: it must be above 0"),
        (lambda: LinearAlignment(rho=-1.0), "LinearAlignment.rho is -1.0"),
        (lambda: LinearAlignment(top_p=0.0), "LinearAlignment.top_p is 0.0"),
        (lambda: ARGS(top_k=0), "ARGS.top_k is 0: it must be at least 1"),
        (lambda: ARGS(weight=math.nan), "ARGS.weight is nan: write a finite number"),
        (lambda: load_contrast("adacat"), "contrast `adacat` is unknown: did you mean `adacad`?"),
        (lambda: load_contrast("adacad", {"beta": 1.0}), "contrast_kwargs.beta: `adacad` has no"),
        (lambda: load_contrast("obrien_lewis", {"beta": "1"}), "beta is '1': write a finite"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_told(make: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", available_contrasts())
def test_a_contrast_has_a_recipe_and_a_row_in_the_docs(name: str):
    assert (ROOT / f"recipes/{name}/generate.yaml").is_file()
    rows = (ROOT / "docs/decoding.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row.startswith(f"| `{name}` |")]


def test_a_contrast_of_ones_own_is_named_by_its_dotted_path():
    assert load_contrast("alignment.contrasts.args.ARGS", {"top_k": 3}) == ARGS(top_k=3)
