from __future__ import annotations

import math
from dataclasses import replace

import pytest

from alignment.objectives.d2o import D2O
from alignment.objectives.dpo import DPO
from tests.objectives.batches import Reply, batch, gradcheck, gradient


def sample(logp: float, ref: float) -> Reply:
    return Reply([logp], [ref], role=1)


def negative(logp: float, ref: float, second: float | None = None) -> Reply:
    return Reply([logp], [ref], role=-1, second_ref=None if second is None else [second])


def test_worked_numbers() -> None:
    """Ratios of the samples 1 and -3, mean -1; of the negative 2: -ls(-0.5 - 0.5) = -ls(-1)."""
    terms = batch([sample(-1, -2), negative(-3, -5), sample(-5, -2)])
    assert D2O(beta=0.5, alpha=0.25)(terms).loss().item() == pytest.approx(math.log1p(math.e))


def test_a_second_reference_serves_the_negative_alone() -> None:
    """The negative's ratio to the second reference is -3 + 1 = -2: -ls(-0.5 + 0.5) = ln 2."""
    terms = batch([sample(-1, -2), negative(-3, -5, -1), sample(-5, -2)])
    objective = D2O(beta=0.5, alpha=0.25, references="two")
    assert "second_reference" in objective.needs
    assert objective(terms).loss().item() == pytest.approx(math.log(2))
    assert objective.initial_loss(terms) is None


@pytest.mark.parametrize("references", ["one", "two"])
def test_gradcheck(references: str) -> None:
    groups = [
        [sample(-1, -2), negative(-3, -5, -1), sample(-5, -2)],
        [negative(-1, -2), sample(-3, -1)],
    ]
    assert gradcheck(D2O(beta=0.7, alpha=0.3, references=references), batch(*groups))  # type: ignore[arg-type]


def test_one_sample_and_equal_strengths_are_dpo() -> None:
    terms = batch([sample(-1, -2), negative(-3, -5)], [negative(-1, -1), sample(-4, -2)])
    ours, theirs = D2O(beta=0.3, alpha=0.3), DPO(beta=0.3)
    assert ours(terms).loss().item() == pytest.approx(theirs(terms).loss().item(), rel=1e-12)
    assert gradient(ours, terms) == pytest.approx(gradient(theirs, terms), rel=1e-12)


def test_every_sample_counts_alike_however_many_there_are() -> None:
    few = batch([sample(-1, -2), negative(-3, -5)])
    many = batch([sample(-1, -2), sample(-1, -2), sample(-1, -2), negative(-3, -5)])
    assert D2O()(few).loss().item() == pytest.approx(D2O()(many).loss().item())


def test_the_value_of_the_published_formula_is_reproduced() -> None:
    """A case of the reference vectors, alpha 0.5 and beta 0.1: one negative and four samples."""
    logps = [-7.177757197643908, -3.4965106580486367, -6.616162316751734, -5.429692835430877]
    refs = [-5.349360655866772, -5.117071272138109, -7.744195247621535, -4.6682118835262605]
    last = (-1.455054390360544, -1.0114282659848834)
    terms = batch(
        [
            negative(logps[0], refs[0]),
            *(sample(p, r) for p, r in zip(logps[1:], refs[1:], strict=True)),
            sample(*last),
        ]
    )
    loss = D2O(beta=0.1, alpha=0.5)(terms).loss().item()
    assert loss == pytest.approx(0.3261803718162531, rel=1e-12)


def test_a_missing_second_reference_is_named() -> None:
    terms = replace(batch([sample(-1, -2), negative(-3, -5)]), second_ref_logps=None)
    with pytest.raises(ValueError, match="second_ref_logps"):
        D2O(references="two")(terms)
