"""Measures against probabilities that are worked out token by token."""

from pathlib import Path

import pytest
import torch

from alignment.comparison.measures import (
    Scorer,
    Text,
    contrast,
    divergences,
    opening,
    right_answers,
)
from alignment.quickstart import world
from alignment.quickstart.student import save_blank

TEXTS = [Text("last: owl fox", "fox"), Text("count: owl fox hen", "3."), Text("sort: b a", "a b")]


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Scorer]:
    folder = tmp_path_factory.mktemp("models")
    return Scorer(save_blank(folder / "a", 0)), Scorer(save_blank(folder / "b", 1))


def logp_by_hand(scorer: Scorer, text: Text) -> float:
    tokenizer = scorer.local.tokenizer
    prompt = tokenizer(opening(tokenizer, text.prompt), add_special_tokens=False).input_ids
    answer = [*tokenizer(text.answer).input_ids, tokenizer.eos_token_id]
    total = 0.0
    for index, token in enumerate(answer):
        ids = torch.tensor([prompt + answer[:index]])
        with torch.inference_mode():
            total += float(scorer.local.model(ids).logits[0, -1].log_softmax(-1)[token])
    return total


def test_the_log_prob_of_an_answer_counts_its_end_and_no_padding(scorers: tuple[Scorer, Scorer]):
    found = scorers[0].logps(TEXTS)
    assert found == pytest.approx([logp_by_hand(scorers[0], text) for text in TEXTS], abs=1e-4)


def test_kl_is_zero_to_itself_and_sums_over_the_vocabulary(scorers: tuple[Scorer, Scorer]):
    first, second = scorers
    assert divergences(first, first, TEXTS) == pytest.approx([0.0] * 3, abs=1e-5)
    found = divergences(first, second, TEXTS[:1])[0]
    (p, _), (q, _) = (next(iter(scorer.distributions(TEXTS[:1]))) for scorer in scorers)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert found > 0


def test_a_prefix_is_read_and_not_scored(tmp_path: Path, scorers: tuple[Scorer, Scorer]):
    folder = save_blank(tmp_path / "a", 0)
    with_prefix = Scorer(folder, prefix="+").logps([Text("last: owl fox", "fox")])[0]
    longer, plain = (
        scorers[0].logps([Text("last: owl fox", answer)])[0] for answer in ("+fox", "fox")
    )
    plus = next(iter(scorers[0].distributions([Text("last: owl fox", "+")])))[0][0]
    token = scorers[0].local.tokenizer("+").input_ids[0]
    assert with_prefix == pytest.approx(longer - float(plus[token]), abs=1e-4)
    assert with_prefix != pytest.approx(plain, abs=1e-3)


def test_wrong_answers_stand_against_the_nearest_right_ones():
    texts = [Text("last: owl fox", "fox."), Text("last: owl fox", "owl.")]
    chosen, rejected = contrast(texts)
    assert rejected == [texts[1]]
    assert chosen == [Text("last: owl fox", "fox.")]
    assert right_answers(["last: owl fox"]) == [
        Text("last: owl fox", answer) for answer in world.accepted("last: owl fox")
    ]
