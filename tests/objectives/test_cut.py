from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from alignment.objectives.cut import CUT
from alignment.objectives.sft import SFT
from tests.objectives.batches import Reply, batch, gradcheck, gradient

RELEASE = CUT(normalisation="release", dynamic_weight="constant", weight=0.5)


def judged(
    without: Sequence[float], with_judgment: Sequence[float], weight: float = 1.0
) -> list[Reply]:
    """A judged record: the plain view, then the view under the judgment."""
    return [Reply(without, weight=-9.0), Reply(with_judgment, weight=weight, twin=0)]


def test_worked_numbers_of_the_paper() -> None:
    """log p- = -1, -2 and log p+ = -0.5, -2.5: ratios e^0.5 and e^-0.5, so token 1 is selected.

    L1 = -(-2 + 0.5 e^(-0.5 * 2) ln(1 - e^-1)) / 2 at weight 0.5 and gamma 2, L2 = (0.5 + 2.5) / 2.
    """
    terms = batch(judged([-1.0, -2.0], [-0.5, -2.5]))
    contrast = (2 - 0.5 * math.exp(-1) * math.log(1 - math.exp(-1))) / 2
    loss = CUT(weight=0.5, gamma=2.0)(terms).loss().item()
    assert loss == pytest.approx(contrast + 1.5)


def test_worked_numbers_of_the_release() -> None:
    """As above, without dynamic weight, and halved: (1.5 + (2 - 0.5 ln(1 - e^-1)) / 2) / 2."""
    terms = batch(judged([-1.0, -2.0], [-0.5, -2.5]))
    contrast = (2 - 0.5 * math.log(1 - math.exp(-1))) / 2
    assert RELEASE(terms).loss().item() == pytest.approx((1.5 + contrast) / 2)


@pytest.mark.parametrize("objective", [CUT(gamma=0.5), RELEASE], ids=["paper", "release"])
def test_gradcheck_where_the_judged_view_is_held_constant(objective: CUT) -> None:
    """Finite differences would also move the dynamic weight, so only the plain view is varied."""
    terms = batch(
        judged([-1.0, -2.0, -0.3], [-0.5, -2.5, -0.1]),
        [Reply([-0.7, -1.9])],
        judged([-3.0], [-1.0]),
    )
    plain = torch.tensor([0, 1, 2, 6, 7, 8])

    def loss(values: torch.Tensor) -> torch.Tensor:
        logps = terms.logps.detach().index_put((plain,), values)
        return objective(replace(terms, logps=logps)).loss()

    start = terms.logps.detach()[plain].requires_grad_()
    assert torch.autograd.gradcheck(loss, (start,))


def test_gradcheck_without_dynamic_weight() -> None:
    terms = batch(judged([-1.0, -2.0, -0.3], [-0.5, -2.5, -0.1]), [Reply([-0.7, -1.9])])
    assert gradcheck(replace(RELEASE, normalisation="paper"), terms)
    assert gradcheck(RELEASE, terms)


def test_the_judged_view_gets_the_gradient_of_its_likelihood_alone() -> None:
    """Two tokens, one record: -1/2 each on the judged view, whatever is selected."""
    assert gradient(CUT(), batch(judged([-1.0, -2.0], [-0.5, -2.5])))[2:] == [-0.5, -0.5]


def test_release_without_judged_records_is_plain_likelihood() -> None:
    terms = batch([Reply([-1.0, -2.0, -0.5])], [Reply([-0.7])])
    assert RELEASE(terms).loss() == SFT()(terms).loss()
    assert RELEASE(replace(terms, twin=None)).loss() == SFT()(terms).loss()
    assert gradient(RELEASE, terms) == gradient(SFT(), terms)


def test_paper_without_judged_records_is_twice_the_mean_of_sequence_likelihoods() -> None:
    """L1 = L2 for an aligned record: 2 * (3.5 / 3 + 0.7) / 2."""
    terms = batch([Reply([-1.0, -2.0, -0.5])], [Reply([-0.7])])
    assert CUT()(terms).loss().item() == pytest.approx(3.5 / 3 + 0.7)


def test_nothing_selected_is_likelihood_on_both_views() -> None:
    """Release: (mean of 0.5 and 2.5 + mean of 1 and 2) / 2."""
    terms = batch(judged([-1.0, -2.0], [-0.5, -2.5]))
    never = replace(RELEASE, threshold=1e6)
    assert never(terms).loss().item() == pytest.approx((1.5 + 1.5) / 2)
    assert not never(terms).parts["selected"].any()


def test_a_ratio_equal_to_the_threshold_is_not_selected() -> None:
    terms = batch(judged([-1.0, -2.0], [-1.0, -2.0]))
    assert not replace(RELEASE, threshold=1.0)(terms).parts["selected"].any()


def test_an_unjudged_record_beside_a_judged_one_halves_the_loss_of_the_release_only() -> None:
    """The factor follows the counts of the whole batch, even for the share without judgments."""
    plain, record = [Reply([-0.7])], judged([-1.0], [-0.5])
    counts = RELEASE(batch(plain, record)).counts()
    share = RELEASE(batch(plain)).loss(counts).item()
    assert share == pytest.approx(0.7 / 2 / 2)


def test_the_paper_weighs_each_record_and_the_release_the_first_for_all() -> None:
    """One selected token each, -ln(1 - e^-1) weighed by 2 and 4 or by 2 twice."""
    terms = batch(judged([-1.0], [-0.5], weight=2.0), judged([-1.0], [-0.5], weight=4.0))
    unlikelihood = -math.log(1 - math.exp(-1))
    paper = CUT(dynamic_weight="constant")(terms).loss().item()
    release = replace(RELEASE, weight=1.0)(terms).loss().item()
    assert paper == pytest.approx(0.5 + 3 * unlikelihood)
    assert release == pytest.approx((0.5 + 2 * unlikelihood) / 2)


def test_without_weights_in_the_data_the_field_alone_counts() -> None:
    terms = batch(judged([-1.0], [-0.5]))
    assert CUT()(replace(terms, weight=None)).loss() == CUT()(terms).loss()


def test_a_certain_token_that_is_selected_takes_the_constant_of_the_release() -> None:
    """p- = 1, threshold 0.5: (0.1 - 0.5 ln 1e-5) / 2, and no gradient."""
    terms = batch(judged([0.0], [-0.1]))
    objective = replace(RELEASE, threshold=0.5)
    assert objective(terms).loss().item() == pytest.approx((0.1 - 0.5 * math.log(1e-5)) / 2)
    assert gradient(objective, terms) == [0.0, -0.5]


def test_an_impossible_token_that_is_selected_adds_nothing() -> None:
    """p- = 0, p+ > 0: log(1 - 0) = 0, and no gradient."""
    terms = batch(judged([-math.inf], [-0.1]))
    assert RELEASE(terms).loss().item() == pytest.approx(0.1 / 2)
    assert gradient(RELEASE, terms) == [0.0, -0.5]


def test_a_token_impossible_in_both_views_is_not_selected() -> None:
    """The contrast is -ln 1e-5; the likelihood is infinite, as in the release."""
    output = RELEASE(batch(judged([-math.inf], [-math.inf])))
    assert not output.parts["selected"].any()
    assert output.terms[1].sums.item() == pytest.approx(-math.log(1e-5))


def test_a_group_may_hold_judged_and_unjudged_records() -> None:
    """Records of one prompt in one group, or each in a group of its own: the same loss."""
    one = judged([-1.0, -2.0], [-0.5, -2.5])
    together = batch([*one, Reply([-0.7])])
    apart = batch(one, [Reply([-0.7])])
    assert RELEASE(together).loss().item() == pytest.approx(RELEASE(apart).loss().item())
    assert CUT()(together).loss().item() == pytest.approx(CUT()(apart).loss().item())


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Two judged records from wwxu21/CUT, threshold 1.1, weight 0.5."""
    terms = batch(
        judged(
            [-4.20396018377061, -3.0527832272448374, -0.3788760207188955],
            [-4.044610573403185, -3.0604800982923956, -0.7617228636971378],
        ),
        judged(
            [
                -3.6247114489100998,
                -0.32462635407444107,
                -1.532057213690332,
                -3.0985311958535005,
                -3.0690245638264013,
            ],
            [
                -3.5103521564141578,
                -0.5244447411325988,
                -1.5879778504743514,
                -2.8086741443482426,
                -3.694834945705544,
            ],
        ),
    )
    output = RELEASE(terms)
    likelihood, contrast = (term.sums.sum() / term.counts.sum() for term in output.terms)
    assert output.loss().item() == pytest.approx(1.7746613066290569, rel=1e-12)
    assert likelihood.item() == pytest.approx(2.499137171683451, rel=1e-12)
    assert contrast.item() == pytest.approx(1.0501854415746628, rel=1e-12)
    selected = [True, False, False, True, False, False, True, False]
    assert output.parts["selected"].tolist() == selected


def test_the_weight_of_the_first_judged_record_is_the_authors() -> None:
    """Three records from wwxu21/CUT, the first unjudged, the others weighted 0.5 and 2."""
    terms = batch(
        [Reply([-3.673400419285902, -1.3162924015669935, -1.284437693836696], weight=-1.0)],
        judged(
            [-1.2093772216429421, -1.4185281741412246],
            [-1.2570862164088084, -1.5108945946452255],
            weight=0.5,
        ),
        judged(
            [-2.867604881617856, -4.400712208878612],
            [-2.2141950470902287, -4.182261810766967],
            weight=2.0,
        ),
    )
    loss = replace(RELEASE, weight=1.0)(terms).loss().item()
    assert loss == pytest.approx(1.4356716947948003, rel=1e-12)
