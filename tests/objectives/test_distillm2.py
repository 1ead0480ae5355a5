from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.objectives.base import Mean, Progress
from alignment.objectives.distillm2 import DistiLLM2
from tests.objectives.distillation import (
    assert_nothing_to_learn_from_itself,
    gradcheck,
    logits,
    one_token_pairs,
    score,
    two_columns,
)

RELEASE = DistiLLM2(form="release", skew="fixed", curriculum="off")
LATER = Progress(step=30, max_steps=40, epoch=1.5, epochs=2)


def anchors(chosen: float | None = None, rejected: float | None = None) -> Mapping[str, Tensor]:
    values = {"anchors/chosen": chosen, "anchors/rejected": rejected}
    return {
        name: torch.tensor(x, dtype=torch.float64) for name, x in values.items() if x is not None
    }


def test_worked_numbers() -> None:
    """Divergences 0.2 (chosen) and 0.6 (rejected).

    paper: 1/2 (1/2 0.2 + 1/2 0.6) = 0.2, and 1/2 (1/4 0.2 + 3/4 0.6) = 0.25 after 30 of 40 steps;
    release: 0.2 + 0.6 = 0.8.
    """
    terms = two_columns(one_token_pairs([[0.2, 0.6]]))
    assert DistiLLM2()(terms).loss().item() == pytest.approx(0.2)
    assert DistiLLM2()(replace(terms, progress=LATER)).loss().item() == pytest.approx(0.25)
    assert RELEASE(terms).loss().item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("curriculum", "betas"),
    [
        ("off", [0.5, 0.5, 0.5, 0.5, 0.5]),
        ("paper", [0.5, 0.5, 0.5, 0.9, 1.0]),
        ("release", [0.5, 0.55, 0.75, 0.75, 0.75]),
    ],
)
def test_the_weight_of_the_rejected_side_grows_as_the_curriculum_says(
    curriculum: Any, betas: list[float]
) -> None:
    terms = two_columns(one_token_pairs([[0.0, 1.0]]))
    objective = DistiLLM2(form="release", curriculum=curriculum)
    for step, beta in zip((0, 10, 50, 90, 100), betas, strict=True):
        now = replace(terms, progress=Progress(step=step, max_steps=100))
        assert objective(now).loss().item() == pytest.approx(2 * beta)


@pytest.mark.parametrize(
    ("teacher", "student", "anchor", "expected"),
    [
        (0.8, 0.3, 0.4, 0.1),  # gap 0.5 beyond the anchor: 1 - 0.9 * 0.8 = 0.28, cut to the base
        (0.8, 0.4, 0.41, 1 - 0.9 * 0.41 / 0.40001),  # a little short of it
        (0.5, 0.4, 0.4, 0.01),  # gap 0.1: 1 - 0.9 * 4 < 0, lifted to the floor
        (0.3, 0.4, 0.4, 0.1),  # negative gap: 1 + 0.9 * 4, cut to the base
    ],
)
def test_the_skew_falls_as_the_gap_falls_below_its_anchor(
    teacher: float, student: float, anchor: float, expected: float
) -> None:
    p, q = torch.tensor([teacher, student]).double().log().tolist()
    terms = one_token_pairs([[0.0, 0.0]], logps=[[q, p]], teacher_logps=[[p, q]])
    objective = DistiLLM2(form="release")
    forward, reverse = objective.divergences(replace(terms, state=anchors(anchor, anchor)))
    # The rejected response is the student's: its gap is the other way round.
    assert forward.skew.tolist() == pytest.approx([expected, expected])
    assert reverse.skew.tolist() == forward.skew.tolist()


def test_a_side_without_an_anchor_keeps_its_base() -> None:
    terms = one_token_pairs([[0.0, 0.0]], logps=[[-2.0, -1.0]], teacher_logps=[[-1.0, -2.0]])
    objective = DistiLLM2(form="release", alpha_chosen=0.3, alpha_rejected=0.2)
    for state, expected in ((anchors(), [0.3, 0.2]), (anchors(chosen=9.0), [0.01, 0.2])):
        skew = objective.divergences(replace(terms, state=state))[0].skew
        assert skew.tolist() == pytest.approx(expected)
    fixed = replace(objective, skew="fixed")
    skew = fixed.divergences(replace(terms, state=anchors(9.0, 9.0)))[0].skew
    assert skew.tolist() == pytest.approx([0.3, 0.2])


def test_the_papers_form_keeps_the_skew_through_the_first_epoch() -> None:
    terms = replace(one_token_pairs([[0.0, 0.0]]), state=anchors(9.0, 9.0))
    first = replace(terms, progress=Progress(step=19, max_steps=40, epoch=0.95, epochs=2))
    assert DistiLLM2().divergences(first)[0].skew.tolist() == pytest.approx([0.1, 0.1])
    second = replace(terms, progress=LATER)
    assert DistiLLM2().divergences(second)[0].skew.tolist() == pytest.approx([0.01, 0.01])


def test_only_the_releases_skew_carries_gradient_and_only_inside_the_clip() -> None:
    terms = one_token_pairs(
        [[0.0, 0.0]] * 2, logps=[[-2.0, -1.0]] * 2, teacher_logps=[[-1.0, -1.5]] * 2
    )
    gap = (torch.tensor(-1.0).exp() - torch.tensor(-2.0).exp()).item()
    now = replace(terms, progress=LATER, state=anchors(1.05 * gap, 9.0))
    assert not DistiLLM2().divergences(now)[0].skew.requires_grad
    skew = DistiLLM2(form="release").divergences(now)[0].skew
    (grad,) = torch.autograd.grad(skew.sum(), now.logps)
    assert grad[[0, 2]].abs().min() > 0.01
    assert grad[[1, 3]].tolist() == [0.0, 0.0]


def test_log_probs_are_only_metrics_while_the_skew_does_not_adapt() -> None:
    terms = one_token_pairs([[0.0, 0.0]])
    known = replace(terms, state=anchors(0.1, 0.1))
    later = replace(known, progress=LATER)
    release = DistiLLM2(form="release")
    assert DistiLLM2(skew="fixed").logps_use(later) == "logged"
    assert release.logps_use(terms) == "logged"
    assert release.logps_use(known) == "gradient"
    assert DistiLLM2().logps_use(known) == "logged"
    assert DistiLLM2().logps_use(later) == "constant"


def test_each_side_has_its_own_divergence_and_the_release_anchors_the_second() -> None:
    terms = one_token_pairs([[0.0, 0.0]] * 2)
    for objective, reverse in (
        (DistiLLM2(), "skewed_reverse_kl"),
        (RELEASE, "anchored_reverse_kl"),
    ):
        specs = objective.divergences(terms)
        assert [spec.kind for spec in specs] == ["skewed_forward_kl", reverse]
        where = [spec.where.tolist() for spec in specs if spec.where is not None]
        assert where == [[True, False, True, False], [False, True, False, True]]


def test_anchors_are_the_mean_gaps_of_the_first_steps_and_then_stay() -> None:
    objective = DistiLLM2(anchor_steps=2)
    state: Mapping[str, Tensor] = {}
    for chosen, rejected, count in ((3.0, 1.0, 6.0), (1.0, 0.0, 2.0), (50.0, 50.0, 2.0)):
        values = {"gaps/chosen": chosen, "gaps/rejected": rejected}
        statistics = {
            name: Mean(torch.tensor(value), torch.tensor(count)) for name, value in values.items()
        }
        assert set(state) != {"anchors/chosen", "anchors/rejected"} or chosen == 50.0
        state = objective.update(state, statistics)
    assert {name: value.item() for name, value in state.items()} == {
        "anchors/chosen": 0.5,
        "anchors/rejected": 0.125,
    }
    assert replace(objective, skew="fixed").update({}, {}) == {}


@pytest.mark.parametrize(
    ("before", "betas"), [(0, [0.5, 0.5]), (1, [0.5, 0.5]), (3, [0.75, 0.875])]
)
def test_the_curriculum_goes_on_over_the_runs_of_a_loop(before: int, betas: list[float]) -> None:
    """Of four epochs, at 0 and 50 of 100 steps: beta is (before + 0, 0.5) / 4, at least 0.5."""
    terms = two_columns(one_token_pairs([[0.0, 1.0]]))
    objective = DistiLLM2(epochs_before=before, epochs_in_all=4)
    for step, beta in zip((0, 50), betas, strict=True):
        now = replace(terms, progress=Progress(step=step, max_steps=100))
        assert objective(now).loss().item() == pytest.approx(beta / 2)


def test_anchors_of_an_earlier_run_stand_for_those_of_this_one() -> None:
    """At epoch 0 of this run, which is not the first of the loop, the skew adapts to them."""
    gaps = score(DistiLLM2(), logits(0), logits(1)).parts["gaps"]
    chosen, rejected = 1.1 * gaps[0].item(), 1.05 * gaps[1].item()
    state = anchors(chosen, rejected)
    from_state = score(DistiLLM2(), logits(0), logits(1), state=state, progress=LATER)
    given = DistiLLM2(anchor_chosen=chosen, anchor_rejected=rejected)
    objective = replace(given, epochs_before=1, epochs_in_all=2)
    from_field = score(objective, logits(0), logits(1), progress=Progress(step=0, max_steps=10))
    assert from_field.parts["skews"].tolist() == from_state.parts["skews"].tolist()
    assert objective.update({}, {}) == {}
    output = score(given, logits(0), logits(1), progress=Progress(step=0, max_steps=10))
    assert output.parts["skews"].tolist() == pytest.approx([0.1] * 4)


def test_statistics_are_the_gaps_of_each_side() -> None:
    terms = two_columns(
        one_token_pairs([[0.0, 0.0]], logps=[[-2.0, -1.0]], teacher_logps=[[-1.0, -3.0]])
    )
    statistics = DistiLLM2()(terms).statistics
    exp = torch.tensor([-1.0, -2.0, -3.0]).double().exp()
    assert statistics["gaps/chosen"].sum.item() == pytest.approx((exp[0] - exp[1]).item())
    assert statistics["gaps/rejected"].sum.item() == pytest.approx((exp[0] - exp[2]).item())
    assert RELEASE(terms).statistics == {}


@pytest.mark.parametrize(("chosen", "rejected"), [(0.1, 0.1), (0.3, 0.0)])
def test_gradcheck_through_both_divergences(chosen: float, rejected: float) -> None:
    objective = DistiLLM2(skew="fixed", alpha_chosen=chosen, alpha_rejected=rejected)
    assert gradcheck(objective, LATER)


def test_gradcheck_through_the_skew() -> None:
    """Of the chosen side: finite differences know nothing of the other side's constant."""
    objective = DistiLLM2(form="release", curriculum="off", beta0=0.0, alpha_chosen=0.3)
    gaps = score(objective, logits(0), logits(1)).parts["gaps"]
    state = anchors(chosen=1.1 * gaps[0].item())
    skews = score(objective, logits(0), logits(1), state=state).parts["skews"]
    assert 0.02 < skews[0] < 0.29
    assert gradcheck(objective, state=state)


@pytest.mark.parametrize("form", ["paper", "release"])
@pytest.mark.parametrize("skew", ["fixed", "adaptive"])
def test_a_teacher_that_is_the_student_gives_zero_loss_and_zero_gradient(
    form: Any, skew: Any
) -> None:
    assert_nothing_to_learn_from_itself(DistiLLM2(form=form, skew=skew))


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Three pairs from jongwooko/distillm-2, adaptive, step 10 of 100 of its schedule."""
    terms = two_columns(
        one_token_pairs(
            [
                [0.2775690199805322, 0.44329351781804577],
                [0.24521068635365312, 0.38422771145640966],
                [0.2689132780366076, 0.2919458193382617],
            ],
            logps=[
                [-2.505264833361222, -1.5349935799533871],
                [-1.9265395470389601, -1.3632026238003379],
                [-3.4197060391606184, -0.8592375424912714],
            ],
            teacher_logps=[
                [-1.6896173904670522, -2.8269660069121145],
                [-0.9916822635682527, -2.50090541497648],
                [-2.1035837922924983, -2.075246326366516],
            ],
        )
    )
    objective = DistiLLM2(form="release", curriculum="release")
    output = objective(
        replace(
            terms,
            progress=Progress(step=10, max_steps=100),
            state=anchors(0.09197519185512597, 0.1842591561807465),
        )
    )
    assert output.loss().item() == pytest.approx(0.6479791464692343, rel=1e-12)
    assert output.parts["per_example"].tolist() == pytest.approx(
        [0.7374349875823294, 0.6433401003203385, 0.5631623515050347], rel=1e-12
    )
    assert output.parts["skews"][0::2].tolist() == pytest.approx(
        [0.1, 0.1, 0.07310380006463446], rel=1e-7
    )
    assert output.parts["skews"][1::2].tolist() == pytest.approx(
        [0.01, 0.04605487824051857, 0.1], rel=1e-7
    )
    assert output.statistics["gaps/chosen"].sum.item() / 3 == pytest.approx(0.1391777494332781)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha_chosen": 0.0}, r"DistiLLM2.alpha_chosen is 0.0: it must be at least 0.01"),
        ({"alpha_rejected": 1.0}, r"DistiLLM2.alpha_rejected is 1.0: it must be .* at most 0.99"),
        ({"skew": "fixed", "alpha_chosen": -0.1}, r"alpha_chosen is -0.1: it must be at least 0"),
        ({"beta0": 1.5}, r"DistiLLM2.beta0 is 1.5: it must be at least 0 and at most 1"),
        ({"epochs_before": 2, "epochs_in_all": 2}, r"epochs_in_all is 2: it must be at least 3"),
        ({"anchor_chosen": 0.1}, r"anchor_chosen and anchor_rejected go together"),
        ({"anchor_steps": 0}, r"DistiLLM2.anchor_steps is 0: it must be at least 1"),
        ({"form": "code"}, r"DistiLLM2.form is 'code': choose one of 'paper', 'release'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistiLLM2(**kwargs)


def test_what_is_missing_is_named() -> None:
    terms = two_columns(one_token_pairs([[0.0, 0.0]]))
    with pytest.raises(ValueError, match="`divergences` is missing"):
        DistiLLM2()(replace(terms, divergences=None))
    with pytest.raises(ValueError, match="`teacher_logps` is missing"):
        DistiLLM2()(replace(terms, teacher_logps=None))
