"""Near-duplicates: what counts as one, and that twice the texts take twice the work."""

import random

import numpy as np
import pytest

from data_builders.duplicates import THRESHOLD, NearIndex, near_duplicates, signature


def count(*texts: str) -> int:
    return near_duplicates([signature(text) for text in texts])


SENTENCE = (
    "The quick brown fox jumps over the lazy dog while the cat looks on from the window sill."
)


def test_a_text_repeated_with_other_case_and_white_space_is_one():
    assert count(SENTENCE, SENTENCE.upper(), SENTENCE.replace(" ", "\n ")) == 2


def test_a_changed_word_in_a_long_text_is_one_and_another_text_is_none():
    text = " ".join(f"word{n}" for n in range(100))
    assert count(text, text.replace("word50", "verb50")) == 1
    assert count(text, " ".join(f"term{n * 7}" for n in range(100))) == 0


def test_half_a_text_is_none():
    """The half has half of the pieces of the whole: 0.5, below 0.8."""
    text = " ".join(f"word{n}" for n in range(200))
    assert count(text, text[: len(text) // 2]) == 0


@pytest.mark.parametrize("text", ["", "a", "ab", "cats", "犬も歩けば棒に当たる"])
def test_short_texts_are_compared_whole_in_every_language(text: str):
    assert count(text, text) == 1
    assert count(text, text + "zzzzzzzz") == 0


def test_half_a_surrogate_pair_is_a_letter_like_others():
    assert count("\ud83d what", "\ud83d what") == 1


def test_nothing_has_no_duplicates():
    assert near_duplicates([]) == 0


def test_signatures_agree_as_much_as_the_sets_of_pieces_overlap():
    """Windows of a random text that share s of their n letters: (s - 7) of (2n - s - 7) pieces."""
    rng = random.Random(0)
    letters = "".join(rng.choice("abcdefghijklmnop") for _ in range(3000))
    for shift in (100, 500, 1000):
        one, other = letters[:2000], letters[shift : 2000 + shift]
        exact = (2000 - shift - 7) / (2000 + shift - 7)
        agree = np.mean(signature(one) == signature(other))
        assert agree == pytest.approx(exact, abs=0.2)  # 64 values: three standard deviations


def test_most_pairs_above_the_threshold_are_found_and_few_below_it():
    rng = random.Random(1)

    def words(size: int) -> list[str]:
        return ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(size)]

    near, far = [], []
    for _ in range(100):
        text = words(200)
        near += [" ".join(text), " ".join([*text[:-5], *words(5)])]  # 0.95 of the pieces
        far += [" ".join(text), " ".join([*text[:-70], *words(70)])]  # 0.48
    assert THRESHOLD == 0.8
    assert count(*near) >= 98
    assert count(*far) <= 2


def test_an_index_finds_texts_that_share_most_pieces_and_no_others():
    """`sort: ab cd ef` and the like: a letter more spoils eight pieces of many, or of few."""
    index = NearIndex()
    long = "a sentence that goes on for quite a while so that a letter more is little"
    for text in ("something else", long, "short text"):
        index.add(text)
    assert index.find(long.upper() + "s") == 1
    assert index.find("short text") == 2
    assert index.find("short test") is None
    assert index.find("") is None
