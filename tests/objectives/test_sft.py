from __future__ import annotations

import pytest

from alignment.objectives.sft import SFT
from tests.objectives.batches import Reply, batch, chosen, gradcheck, gradient, rejected


def test_worked_numbers() -> None:
    """Tokens -1, -2, -3 and -6 in two responses: 12 / 4 = 3, and -1/4 for each token."""
    terms = batch([chosen(-1.0, -2.0, -3.0)], [chosen(-6.0)])
    assert SFT()(terms).loss().item() == 3.0
    assert gradient(SFT(), terms) == [-0.25, -0.25, -0.25, -0.25]


def test_gradcheck() -> None:
    assert gradcheck(SFT(), batch([chosen(-1.0, -0.3), rejected(-2.0)], [Reply([-0.7])]))


def test_rejected_responses_are_not_imitated() -> None:
    alone = batch([chosen(-1.0, -2.0)])
    pair = batch([chosen(-1.0, -2.0), rejected(-9.0, -9.0)])
    assert SFT()(pair).loss() == SFT()(alone).loss()
    assert gradient(SFT(), pair) == [-0.5, -0.5, 0.0, 0.0]


def test_the_value_of_cut_on_unjudged_records_is_reproduced() -> None:
    """Two records of 3 and 1 tokens: (0.5 + 1.25 + 0.125 + 2.125) / 4 = 1, as `CUT` has it."""
    terms = batch([Reply([-0.5, -1.25, -0.125])], [Reply([-2.125])])
    assert SFT()(terms).loss().item() == pytest.approx(1.0, rel=1e-15)
