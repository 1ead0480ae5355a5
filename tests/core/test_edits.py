"""Marks of edits between two lists of ids, and on a pair."""

import random

from alignment.core.edits import edit_marks, mark_edits
from tests.core.batches import token_group

END = {1}


def test_replaced_inserted_and_deleted_tokens_are_marked():
    """4 5 6 7 -> 4 9 6 7 8: 5 is replaced by 9 and 8 is inserted; then the ends."""
    assert edit_marks([4, 5, 6, 7, 1], [4, 9, 6, 7, 8, 1], END) == (
        [0, -1, 0, 0, 1],
        [0, 1, 0, 0, 1, 1],
    )
    assert edit_marks([4, 5, 6], [4, 6], END) == ([0, -1, 0], [0, 0])


def test_equal_answers_have_marks_at_their_ends_alone():
    assert edit_marks([4, 1], [4, 1], END) == ([0, 1], [0, 1])


def test_the_first_end_counts_and_overwrites_an_edit():
    assert edit_marks([1, 4, 1], [4, 1], END) == ([1, 0, 0], [0, 1])


def test_the_chosen_side_of_a_pair_is_the_revision_wherever_it_stands():
    rng = random.Random(0)
    pair = token_group(rng, 3, [4, 4], role=[-1, 1])
    marked = mark_edits(pair, END)
    assert marked.mark is not None
    assert list(marked.mark) == list(edit_marks(pair.responses[0], pair.responses[1], END))
    assert set(marked.mark[0]) <= {0, -1}
    assert set(marked.mark[1]) <= {0, 1}
