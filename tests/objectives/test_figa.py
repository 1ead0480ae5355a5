from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignment.objectives.figa import FIGA
from alignment.objectives.sft import SFT
from tests.objectives.batches import Reply, batch, gradcheck, gradient

REVISED = Reply([-1.0, -2.0, -3.0], role=1, mark=[0, 1, 1])
ORIGINAL = Reply([-0.5, -0.4, -4.0], role=-1, mark=[0, -1, -1])
RELEASE = FIGA(normalisation="release")


def test_worked_numbers() -> None:
    """2 + 3 - 0.5 * 0.4 = 4.8, over four marked tokens; the last negative is not confident."""
    terms = batch([REVISED, ORIGINAL])
    assert FIGA()(terms).loss().item() == pytest.approx(4.8 / 4)
    assert RELEASE(terms).loss().item() == pytest.approx(4.8 / 3)


@pytest.mark.parametrize("objective", [FIGA(), RELEASE], ids=repr)
def test_gradcheck(objective: FIGA) -> None:
    assert gradcheck(objective, batch([REVISED, ORIGINAL], [ORIGINAL, REVISED]))


def test_all_negatives_confident_make_both_counts_equal() -> None:
    original = Reply([-0.5, -0.4, -0.1], role=-1, mark=[0, -1, -1])
    terms = batch([REVISED, original])
    assert FIGA()(terms).loss() == RELEASE(terms).loss()


def test_everything_inserted_is_the_likelihood_of_the_revision() -> None:
    revised = Reply([-1.0, -2.0, -3.0], role=1, mark=[1, 1, 1])
    terms = batch([revised, Reply([-0.5], role=-1, mark=[0])])
    assert FIGA()(terms).loss().item() == SFT()(batch([revised])).loss().item() == 2.0


def test_a_mark_of_the_other_sign_has_no_effect() -> None:
    """The release marks the original's end +1."""
    original = Reply([-0.5, -0.4, -0.1], role=-1, mark=[0, -1, 1])
    output = RELEASE(batch([REVISED, original]))
    assert output.parts["token_weights"].tolist() == [0, 1, 1, 0, -0.5, 0]


def test_the_release_counts_what_the_policy_is_confident_of_and_says_so() -> None:
    terms = batch([REVISED, ORIGINAL])
    assert RELEASE.counts_read_policy
    assert not FIGA().counts_read_policy
    sure = replace(terms, logps=torch.full_like(terms.logps, -0.1))
    assert (RELEASE(terms).counts().item(), RELEASE(sure).counts().item()) == (3, 4)
    assert FIGA()(terms).counts().item() == FIGA()(sure).counts().item() == 4


def test_an_impossible_token_that_is_not_marked_leaves_the_loss_finite() -> None:
    revised = Reply([-float("inf"), -2.0], role=1, mark=[0, 1])
    assert FIGA()(batch([revised, ORIGINAL])).loss().isfinite()


def test_the_values_of_the_authors_code_are_reproduced() -> None:
    """Twelve tokens: every fourth one brought in, the others taken out or kept."""
    logps = [
        -1.908212067715468,
        -0.23450219256350757,
        -0.10560514838442366,
        -0.5083723051632936,
        -0.14994316541369454,
        -0.8489017842444467,
        -0.28990736085708546,
        -0.2556181865710188,
        -0.4179141902309308,
        -0.6236795475930235,
        -1.2637828358876846,
        -0.5296614957577312,
    ]
    marks = [1, -1, 0, -1, 1, -1, 0, -1, 1, -1, 0, -1]
    revised = [(p, m) for p, m in zip(logps, marks, strict=True) if m > 0]
    original = [(p, m) for p, m in zip(logps, marks, strict=True) if m <= 0]
    sides = [
        Reply([p for p, _ in side], role=role, mark=[m for _, m in side])
        for side, role in ((revised, 1), (original, -1))
    ]
    output = RELEASE(batch(sides))
    assert output.loss().item() == pytest.approx(0.2445703333331882, rel=1e-12)
    assert output.counts().item() == 7
    assert sorted(gradient(RELEASE, batch(sides))) == pytest.approx(
        [
            -0.14285714285714285,
            -0.14285714285714285,
            -0.14285714285714282,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.07142857142857142,
            0.07142857142857142,
            0.07142857142857142,
            0.07142857142857142,
        ],
        rel=1e-12,
    )
