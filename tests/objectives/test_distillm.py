from __future__ import annotations

import pytest

from alignment.objectives.distillm import DistiLLM
from alignment.objectives.distillm2 import DistiLLM2
from tests.objectives.batches import Reply, batch
from tests.objectives.distillation import (
    assert_nothing_to_learn_from_itself,
    gradcheck,
    logits,
    one_token_pairs,
    score,
)


def test_worked_numbers() -> None:
    """Both responses count in full: (0.2 + 0.6 + 0.1 + 0.3) / 2 pairs."""
    terms = one_token_pairs([[0.2, 0.6], [0.1, 0.3]])
    assert DistiLLM()(terms).loss().item() == pytest.approx(0.6)


def test_every_response_gets_the_anchored_reverse_kl() -> None:
    terms = batch([Reply([-1.0]), Reply([-2.0, -3.0])])
    (spec,) = DistiLLM(alpha=0.3).divergences(terms)
    assert spec.kind == "anchored_reverse_kl"
    assert spec.skew.tolist() == [0.3, 0.3]
    assert spec.where is None


def test_the_rejected_half_is_that_of_distillm2s_release() -> None:
    second = DistiLLM2(form="release", skew="fixed", curriculum="off")
    student, teacher = logits(0), logits(1)
    ours = score(DistiLLM(), student, teacher).parts["divergences"][1::2]
    theirs = score(second, student, teacher).parts["divergences"][1::2]
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-14)


def test_without_skew_the_gradient_is_that_of_the_reverse_kl() -> None:
    """At alpha = 0 nothing is held constant, so that finite differences apply."""
    assert gradcheck(DistiLLM(alpha=0.0))


def test_a_teacher_that_is_the_student_gives_zero_loss_and_zero_gradient() -> None:
    assert_nothing_to_learn_from_itself(DistiLLM())


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Two pairs of `distillm_v1` from jongwooko/distillm-2."""
    terms = one_token_pairs(
        [[0.19626190974012372, 0.24263178408049074], [0.13559117037245313, 0.2362252669559113]]
    )
    output = DistiLLM()(terms)
    assert output.loss().item() == pytest.approx(0.40535506557448947, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.4388936938206145, 0.37181643732836445], rel=1e-12
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_hyper_parameters_out_of_range_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"DistiLLM.alpha is .*: it must be at least 0"):
        DistiLLM(alpha=alpha)
