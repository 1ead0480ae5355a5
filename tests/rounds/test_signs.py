"""Signs of answers that please the judge: length, repetition, disagreement."""

import pytest

from alignment.rounds.signs import Signs, repeated_pieces, signs_of, warnings_of

CALM = Signs(length=100, same_answer=0.02, repeated_pieces=0.0, order_disagreement=0.1)


def test_repeated_pieces_by_hand():
    """`a b c d a b c d` has five pieces of four words, of which the last stood there before."""
    assert repeated_pieces(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert repeated_pieces(["a b c", ""]) == 0.0


def test_the_signs_of_a_round():
    verdicts = [{"prompt": p, "score": s} for p, s in (("p", 1.0), ("q", 0.0), ("r", 0.5))]
    second = [{"prompt": p, "score": s} for p, s in (("p", 0.75), ("q", 0.5), ("r", None))]
    found = signs_of(["one", "two", "three"], {"position_consistency": 0.75}, verdicts, second)
    assert found.length == pytest.approx(11 / 3)
    assert found.order_disagreement == 0.25
    assert found.audit_disagreement == 0.5  # they agree on p, not on q; r is judged by one alone
    assert signs_of(["one"]).order_disagreement is None


def test_nothing_is_told_of_answers_as_they_were():
    assert warnings_of(CALM, CALM, CALM) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"length": 130}, "1.30 times as long"),
        ({"length": 70}, "0.70 times as long"),
        ({"same_answer": 0.5}, "50% of the prompts get one answer, 2% at the start"),
        ({"repeated_pieces": 0.2}, "20% of the pieces of answers are repeated"),
        ({"order_disagreement": 0.3}, "verdicts change with the order of the answers in 30%"),
    ],
)
def test_each_drift_is_told(change: dict[str, float], told: str):
    (warning,) = warnings_of(CALM._replace(**change), CALM, CALM)
    assert told in warning


def test_judges_that_part_are_told():
    first = CALM._replace(audit_disagreement=0.1)
    (warning,) = warnings_of(CALM._replace(audit_disagreement=0.4), CALM, first)
    assert "the second judge names another winner in 40% of cases, 10% in the first" in warning
