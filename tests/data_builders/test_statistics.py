"""Contrast and length, with the arithmetic shown."""

import pytest

from data_builders.statistics import (
    edit_distance,
    jaccard,
    normalised_edit_distance,
    pair_statistics,
)


def test_equal_texts_overlap_fully_and_are_no_distance_apart():
    text = "The answer, in short: 42."
    assert (jaccard(text, text), edit_distance(text, text)) == (1.0, 0)
    assert (jaccard("", ""), normalised_edit_distance("", "")) == (1.0, 0.0)


def test_disjoint_token_sets_do_not_overlap():
    assert jaccard("one two", "three four") == 0.0


def test_jaccard_counts_each_token_once():
    """{a, b, .} and {a, c, .} share a and the stop: 2 of 4."""
    assert jaccard("a a b.", "c. a a a") == 2 / 4


def test_edit_distance_is_in_characters():
    """kitten -> sitten -> sittin -> sitting: 3 edits, of 7 characters."""
    assert edit_distance("kitten", "sitting") == 3
    assert normalised_edit_distance("kitten", "sitting") == pytest.approx(3 / 7, rel=1e-12)


@pytest.mark.parametrize("measure", [jaccard, edit_distance, normalised_edit_distance])
def test_measures_are_symmetric(measure):
    first, second = "the cat sat on the mat", "a cat sat, on mats"
    assert measure(first, second) == measure(second, first)


def test_statistics_of_pairs_are_means_and_shares():
    """Lengths (4, 2), (2, 4), (3, 3): means 3 and 3; chosen is longer once in three, equal once.

    Token sets are {abcd} {ab}, {ab} {abcd}, {abc} {abc}: overlaps 0, 0, 1. Edits 2, 2, 0, over
    lengths 4, 4, 3.
    """
    made = pair_statistics([("abcd", "ab"), ("ab", "abcd"), ("abc", "abc")])
    assert made._asdict() == pytest.approx(
        {
            "pairs": 3,
            "chosen_length": 3.0,
            "rejected_length": 3.0,
            "length_win_rate": 1 / 3,
            "length_ties": 1 / 3,
            "jaccard": 1 / 3,
            "edit_distance": 4 / 3,
            "normalised_edit_distance": (0.5 + 0.5 + 0) / 3,
        },
        rel=1e-12,
    )


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        pair_statistics([])
