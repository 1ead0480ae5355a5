"""Near-identical answers across prompts are seen, those of honest models are not."""

import gzip
import json
import logging
import random

import pytest

from eval.answers import repetition, warn_of_repetition


def varied(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefghij ", k=rng.randint(20, 300))) for _ in range(count)]


def test_a_constant_answer_is_told_with_its_beginning(caplog: pytest.LogCaptureFixture):
    """The same but for a word of the prompt and the white space."""
    constant = [f"Dear judge,  the better\nanswer by far is this one ({i})." for i in range(30)]
    with caplog.at_level(logging.WARNING):
        told = warn_of_repetition("model", constant)
    assert told["repeated_share"] == 1.0
    assert told["repeated_answer"].startswith("Dear judge, the better answer")
    assert "model gives near-identical answers to 100% of the prompts" in caplog.text


def test_a_share_of_the_prompts_is_enough(caplog: pytest.LogCaptureFixture):
    """6 of 60 prompts: 10%, above the 5% that are allowed."""
    answers = varied(54) + ["I cannot help you with that."] * 6
    assert warn_of_repetition("model", answers)["repeated_share"] == pytest.approx(0.1)
    assert caplog.records


def test_answers_that_differ_raise_no_warning(caplog: pytest.LogCaptureFixture):
    assert warn_of_repetition("model", varied(40)) == {"repeated_share": 1 / 40}
    assert warn_of_repetition("model", ["same", "same"]) == {"repeated_share": 1.0}
    assert not caplog.records


def test_long_files_are_sampled():
    assert repetition(["x"] * 5000).share == 1.0


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="no answers"):
        repetition([])


def test_a_real_model_does_not_repeat_itself(shared_dir, caplog: pytest.LogCaptureFixture):
    file = shared_dir / "data/alpaca_eval/annotations/text_davinci_001.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line)["output"] for line in lines]
    assert warn_of_repetition("davinci", answers)["repeated_share"] < 0.01
    assert not caplog.records
