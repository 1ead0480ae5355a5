from __future__ import annotations

import pytest

from alignment.objectives.seqkd import SeqKD
from alignment.objectives.sft import SFT
from tests.objectives.batches import batch, chosen, gradcheck, gradient, rejected


def test_worked_numbers() -> None:
    """Means per response: 2 and 5, hence 3.5; the rejected response counts for nothing."""
    terms = batch([chosen(-1.0, -3.0), rejected(-9.0)], [chosen(-5.0), rejected(-9.0)])
    assert SeqKD()(terms).loss().item() == pytest.approx(3.5)
    assert gradient(SeqKD(), terms) == pytest.approx([-0.25, -0.25, 0.0, -0.5, 0.0])


def test_gradcheck() -> None:
    assert gradcheck(SeqKD(), batch([chosen(-1.0, -3.0), rejected(-9.0)], [chosen(-5.0)]))


def test_responses_of_one_length_make_it_plain_likelihood() -> None:
    terms = batch([chosen(-1.0, -3.0), rejected(-9.0)], [chosen(-5.0, -0.5)])
    assert SeqKD()(terms).loss().item() == pytest.approx(SFT()(terms).loss().item())


def test_the_values_of_the_authors_are_reproduced() -> None:
    """Two pairs of `seqkd` from jongwooko/distillm-2."""
    terms = batch(
        [chosen(-2.201750350260617), rejected(-2.714260400916362)],
        [chosen(-1.9686797568839103), rejected(-2.4359009084617225)],
    )
    assert SeqKD()(terms).loss().item() == pytest.approx(2.0852150535722638, rel=1e-12)
