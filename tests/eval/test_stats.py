"""Win rates with known numbers, and intervals that cover what they claim to."""

from pathlib import Path

import numpy as np
import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from eval.stats import bootstrap_mean, holm, refuse_unjudged, sign_flip, summarise, win_rate


def test_a_win_rate_counts_ties_half_and_leaves_unjudged_out():
    """(1 + 0 + 0.5 + 0.75 + 0.25) / 5 = 0.5; wins 1 and 0.75, losses 0 and 0.25."""
    made = win_rate([1.0, 0.0, None, 0.5, 0.75, 0.25], seed=0, resamples=100)
    assert made[0] == 0.5
    assert made[2:] == (5, 2, 2, 1, 1)


def test_the_interval_of_equal_values_is_a_point():
    assert bootstrap_mean([0.25] * 10, seed=0, resamples=50) == (0.25, 0.25)


def test_the_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(0).random(20)
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1) != bootstrap_mean(values, 2)


def test_the_interval_is_close_to_the_normal_one_for_many_values():
    """Mean 0.3 of 1,000 zeros and ones: standard error sqrt(.3 * .7 / 1000) = .01449."""
    low, high = bootstrap_mean([1.0] * 300 + [0.0] * 700, seed=0)
    assert low == pytest.approx(0.3 - 1.96 * 0.01449, abs=0.002)
    assert high == pytest.approx(0.3 + 1.96 * 0.01449, abs=0.002)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """200 samples of 100 draws with p = .6: at least 88% of the 95% intervals hold .6."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_mean((rng.random(100) < 0.6).astype(float), seed, resamples=300)
        covered += low <= 0.6 <= high
    assert 0.88 * 200 <= covered <= 200


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([], seed=0)


def vote(first, preference, fault=None, text="Verdict: A"):
    return {"first": first, "preference": preference, "fault": fault, "text": text}


def row(prompt, score, votes=(), consistent=None):
    shown = {"prompt": prompt, "answer": "ab", "baseline": "a"}
    return {**shown, "score": score, "consistent": consistent, "votes": list(votes)}


def test_a_summary_is_over_prompts_and_counts_what_is_missing():
    """Prompt p: (1 + 0.5) / 2 = 0.75; q has no score; r ties by being identical."""
    agreed = [vote("answer", 1.0), vote("baseline", 1.0)]
    split = [vote("answer", 1.0), vote("baseline", 0.0)]
    broken = [vote("answer", 1.0), vote("baseline", None, "unparseable", "Well ...")]
    made = summarise(
        [
            row("p", 1.0, agreed, True),
            row("p", 0.5, split, False),
            row("q", None, broken),
            row("r", 0.5),
        ],
        seed=0,
    )
    assert made["win_rate"] == (0.75 + 0.5) / 2
    assert (made["n_prompts"], made["unjudged"], made["n_comparisons"]) == (2, 1, 4)
    assert (made["wins"], made["ties"], made["identical"]) == (1, 1, 1)
    assert (made["unreadable_verdicts"], made["faults"]) == (1, {"unparseable": 1})
    assert made["position_consistency"] == 0.5
    assert (made["answer_length"], made["baseline_length"]) == (2.0, 1.0)


def test_prompts_without_an_answer_are_unjudged():
    made = summarise([row("p", 1.0), row("q", 0.5)], seed=0, unanswered=3)
    assert (made["n_prompts"], made["unjudged"], made["unanswered"]) == (2, 3, 3)
    assert made["win_rate"] == 0.75


def test_a_prompt_with_one_unreadable_comparison_of_two_is_unjudged():
    broken = [vote("answer", None, "unparseable"), vote("baseline", 1.0)]
    made = summarise([row("p", 1.0), row("p", None, broken), row("q", 0.5)], seed=0)
    assert (made["n_prompts"], made["unjudged"], made["win_rate"]) == (1, 1, 0.5)


def test_a_judge_that_says_nothing_readable_is_an_error_that_shows_its_words():
    broken = [vote("answer", None, "unparseable", "I like both.")] * 2
    with pytest.raises(UserError, match=r"2 of 2 cannot be read.*unparseable: `I like both\.`"):
        summarise([row("p", None, broken)], seed=0)


def test_too_few_judged_prompts_are_refused(tmp_path):
    faults = {"refused": 2, "unparseable": 5}
    results = {"n_prompts": 94, "unjudged": 6, "unanswered": 0, "faults": faults}
    with pytest.raises(UserError, match=r"only 94 of 100 .*\(2 refused, 5 unparseable\)"):
        refuse_unjudged(results, tmp_path)
    with pytest.raises(UserError, match=r"\(1 without an answer, 2 refused.*; see a, b, or pass"):
        refuse_unjudged({**results, "unanswered": 1}, Path("a"), "b")
    refuse_unjudged({**results, "n_prompts": 114}, tmp_path)


def test_a_sign_flip_test_counts_the_signs_as_extreme():
    """Differences 1, 2, 3: of 8 sets of signs only all plus and all minus reach a sum of 6."""
    assert sign_flip([1, 2, 3], seed=0) == 2 / 8
    assert sign_flip([0, 0], seed=0) == 1.0


def test_the_sign_flip_test_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for seed in range(3):
        data = np.random.default_rng(seed).normal(0.3, 1, 11)
        theirs = stats.permutation_test(
            (data,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip(data, seed=0) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_drawn_signs_come_close_to_all_of_them():
    data = np.random.default_rng(5).normal(0.4, 1, 13)
    assert sign_flip(data, 0, 8191) == pytest.approx(sign_flip(data, 0, 8192), abs=0.02)


def test_holms_correction_by_hand():
    """Sorted .01, .02, .04: times 3, 2, 1, never falling: .03, .04, .04."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []


def test_holms_correction_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(0).random(20) ** 2
    theirs = multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values.tolist()) == pytest.approx(theirs.tolist())


EVALUATORS = {
    "agreement": ["--pairs", "p"],
    "alpaca_eval": ["--annotations", "a", "--prompts", "p"],
    "mt_bench": ["--judgments", "j"],
    "translation": ["--references", "r", "--answers", "a"],
    "winrate": ["--answers", "a", "--baseline", "b", "--output", "o"],
    "zero_or_down": ["--pairs", "p", "--output", "o", "--model", "m"],
}


@pytest.mark.parametrize("name", EVALUATORS)
def test_what_nothing_can_be_drawn_with_is_told_before_anything_is_read(name: str):
    command = ["eval", name, *EVALUATORS[name]]
    drawn = "prompts" if name == "zero_or_down" else "resamples"
    with pytest.raises(UserError, match=f"`{drawn}` is 0; it must be at least 1"):
        dispatch([*command, f"--{drawn}", "0"])
    with pytest.raises(UserError, match="`seed` is -1; it must be at least 0"):
        dispatch([*command, "--seed", "-1"])
    with pytest.raises(UserError, match="no such file"):
        dispatch([*command, "--seed", "0"])
