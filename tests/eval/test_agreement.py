"""Published agreement of humans and judges, worked examples, and files that do not fit."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from eval.agreement import corrected_win_rate, in_both_orders, length_bias, macro
from eval.labelled_pairs import LabelledPair, Verdicts, read_pairs


def write(folder: Path, rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report(capsys: pytest.CaptureFixture[str], path: Path, *argv: object) -> dict[str, Any]:
    words = ["eval", "agreement", "--pairs", path, "--json", "-", "--resamples", 200, *argv]
    dispatch([str(word) for word in words])
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_the_published_kappas_of_pandalm_come_out(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shared_dir / "data/agreement"
    expected = json.loads((folder / "pandalm_expected.json").read_text())
    made = report(capsys, folder / "pandalm_human.jsonl.gz")
    assert made["kappa"] == pytest.approx(expected["kappa"], abs=1e-12)
    assert [round(kappa, 4) for kappa in made["kappa"].values()] == [0.8520, 0.8789, 0.8617]
    assert made["labels"] == expected["published_majority_counts"]
    for name in ("gpt35", "pandalm7b"):
        shared = {key: made["judges"][name][key] for key in expected[name]}
        assert shared == pytest.approx(expected[name], abs=1e-12)


def test_the_published_accuracies_of_llmbar_come_out(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shared_dir / "data/agreement"
    expected = json.loads((folder / "llmbar_expected.json").read_text())
    made = report(capsys, folder / "llmbar.jsonl.gz")
    assert made["subsets"].keys() == expected.keys()
    for subset, judges in expected.items():
        for judge, numbers in judges.items():
            own = made["subsets"][subset][judge]
            del numbers["published"]
            assert {key: own[key] for key in numbers} == pytest.approx(numbers, abs=1e-12)
            assert own["accuracy"] == pytest.approx(numbers["average_accuracy"] / 100)
            assert own["position_consistency"] == numbers["orders_agree"] / numbers["n"]


def pair(label: int, first: int | None, lengths=(10, 5), **verdicts: Any) -> LabelledPair:
    return LabelledPair(label, {}, {"j": Verdicts(first, **verdicts)}, lengths, None)


def test_macro_averages_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    rng = random.Random(0)
    labels = [rng.randrange(3) for _ in range(80)]
    verdicts = [label if rng.random() < 0.6 else rng.randrange(3) for label in labels]
    expected = precision_recall_fscore_support(labels, verdicts, average="macro")[:3]
    assert [*macro(labels, verdicts).values()] == pytest.approx(expected, abs=1e-12)


def test_both_orders_of_a_worked_example():
    """Right in both, in the first alone, in none, and once without a verdict: 3 of 8."""
    verdicts = [Verdicts(1, 1), Verdicts(1, 2), Verdicts(2, 2), Verdicts(None, None)]
    made = in_both_orders([1, 1, 1, 1], verdicts)
    assert (made["correct_first_order"], made["correct_swapped"], made["correct_both"]) == (2, 1, 1)
    assert (made["orders_agree"], made["position_consistency"]) == (2, 0.5)
    assert made["average_accuracy"] == 37.5


def test_length_bias_of_a_worked_example():
    """The judge takes the longer in 3 of 4, humans in 2 of 4; ties and equal lengths tell nothing.
    Right on both whose longer is better, on one of two whose shorter is."""
    rows = [pair(1, 1), pair(1, 1), pair(2, 1), pair(2, 2), pair(0, 1), pair(1, 0)]
    rows += [pair(1, 2, lengths=(5, 5)), pair(1, None)]
    assert length_bias(rows, "j") == {
        "judge_prefers_longer": 0.75,
        "humans_prefer_longer": 0.5,
        "bias": 0.25,
        "accuracy_longer_better": 1.0,
        "accuracy_shorter_better": 0.5,
    }
    assert length_bias([pair(1, 1, lengths=(5, 5))], "j") is None


def test_a_win_rate_is_corrected_by_what_the_pairs_tell_of_the_judge():
    """Of 10 wins the judge finds 8 and ties 1: .85. Of 10 losses it takes 2 for wins: .8.
    A rate of .6 becomes (.6 + .8 - 1) / (.85 + .8 - 1) = .4 / .65."""
    rows = [pair(1, 1)] * 8 + [pair(1, 0), pair(1, 2)] + [pair(2, 2)] * 8 + [pair(2, 1)] * 2
    made = corrected_win_rate(rows, "j", [1.0] * 60 + [0.0] * 40, seed=0, resamples=500)
    assert (made["apparent"], made["sensitivity"]) == (0.6, pytest.approx(0.85))
    assert made["specificity"] == pytest.approx(0.8)
    assert made["corrected"] == pytest.approx(0.4 / 0.65)
    low, high = made["corrected_ci"]
    assert low < made["corrected"] < high


def test_the_pairs_own_rate_becomes_that_of_the_humans():
    """Without ties it is an identity: 30 of 50 are wins."""
    rows = [pair(1, 1)] * 25 + [pair(1, 2)] * 5 + [pair(2, 2)] * 12 + [pair(2, 1)] * 8
    made = corrected_win_rate(rows, "j", None, seed=0, resamples=100)
    assert made["corrected"] == pytest.approx(0.6)


def test_the_corrected_interval_covers_the_truth_about_as_often_as_it_says():
    """True rate .6, sensitivity .8, specificity .7, 100 drawn samples: at least 88 of them."""
    rng = random.Random(0)

    def verdict(win: bool) -> int:
        return 1 if rng.random() < (0.8 if win else 0.3) else 2

    covered = 0
    for seed in range(100):
        rows = [pair(1, verdict(True)) for _ in range(100)]
        rows += [pair(2, verdict(False)) for _ in range(100)]
        scores = [2.0 - verdict(rng.random() < 0.6) for _ in range(200)]
        low, high = corrected_win_rate(rows, "j", scores, seed, resamples=200)["corrected_ci"]
        covered += low <= 0.6 <= high
    assert 88 <= covered <= 100


def test_two_orders_of_a_pair_are_one_observation():
    """Asked twice, a judge that repeats itself measures no more than asked once."""
    once: list[LabelledPair] = []
    twice: list[LabelledPair] = []
    for label, first in [(1, 1)] * 20 + [(1, 2)] * 5 + [(2, 2)] * 12 + [(2, 1)] * 8:
        once.append(pair(label, first))
        twice.append(pair(label, first, swapped=first, both=True))
    one, two = (corrected_win_rate(rows, "j", None, 0, 200) for rows in (once, twice))
    assert one == two
    split = [pair(1, 1, swapped=2, both=True)] * 4 + [pair(2, 2, swapped=None, both=True)] * 4
    made = corrected_win_rate(split, "j", None, seed=0, resamples=50)
    assert (made["apparent"], made["sensitivity"], made["specificity"]) == (0.25, 0.5, 1.0)


def test_a_judge_who_tells_nothing_corrects_nothing():
    rows = [pair(1, 1), pair(1, 2), pair(2, 1), pair(2, 2)]
    made = corrected_win_rate(rows, "j", None, seed=0, resamples=50)
    assert (made["corrected"], made["corrected_ci"]) == (None, None)
    only = corrected_win_rate([pair(1, 1)], "j", None, seed=0, resamples=50)
    assert only["sensitivity"] is None


GENERAL: list[dict[str, Any]] = [
    {"label": 1, "judges": {"one": 1, "two": {"first_order": "A", "swapped": "tie"}}},
    {"label": "tie", "judges": {"one": None, "two": {"first_order": "b", "swapped": 2}}},
]


def test_the_general_layout_is_read(tmp_path: Path):
    pairs, split = read_pairs(write(tmp_path, GENERAL))
    assert split == 0
    assert [made.label for made in pairs] == [1, 0]
    assert [made.judges["one"] for made in pairs] == [Verdicts(1), Verdicts(None)]
    assert [made.judges["two"] for made in pairs] == [Verdicts(1, 0, True), Verdicts(2, 2, True)]


def test_annotators_without_majority_are_counted(tmp_path: Path):
    rows = [
        {"annotator1": 1, "annotator2": 1, "annotator3": 2, "mine": 1},
        {"annotator1": 1, "annotator2": 0, "annotator3": 2, "mine": 1},
    ]
    pairs, split = read_pairs(write(tmp_path, rows))
    assert ([made.label for made in pairs], split) == ([1], 1)
    assert pairs[0].judges == {"mine": Verdicts(1)}


def test_columns_of_text_are_no_judges(tmp_path: Path):
    rows = [{"label": 1, "source": "web", "mine": 2}, {"label": 2, "source": "web", "mine": None}]
    assert read_pairs(write(tmp_path, rows))[0][0].judges.keys() == {"mine"}


def test_verdicts_of_another_run_are_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Always right: what was measured is true; one of four rows is unjudged."""
    pairs = write(tmp_path, [{"label": label, "judges": {"j": label}} for label in (1, 2) * 20])
    verdicts = write(tmp_path, [{"score": s} for s in (1.0, 0.5, None, 0.0)], "verdicts.jsonl")
    made = report(capsys, pairs, "--verdicts", verdicts)["corrected"]
    assert (made["judge"], made["n"], made["unjudged"]) == ("j", 3, 1)
    assert (made["apparent"], made["corrected"]) == (0.5, 0.5)


def test_a_report_to_read_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = write(tmp_path, [{"label": label, "judges": {"j": label}} for label in (1, 2) * 20])
    out = tmp_path / "report.json"
    dispatch(["eval", "agreement", "--pairs", str(pairs), "--json", str(out), "--resamples", "50"])
    assert "j: accuracy 1.000, 95% interval [1.000, 1.000], kappa 1.000" in capsys.readouterr().out
    assert json.loads(out.read_text())["judges"]["j"]["kappa"] == 1.0


@pytest.mark.parametrize("empty", ["", None, "na"])
def test_a_column_without_a_label_is_no_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: object
):
    rows = [{"label": 1, "judges": {"j": 1}, "comment": empty} for _ in range(5)]
    assert report(capsys, write(tmp_path, rows))["judges"].keys() == {"j"}


def test_a_column_with_some_labels_is_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"label": 1, "j": said} for said in (1, 2, None, "error")]
    made = report(capsys, write(tmp_path, rows), "--allow-missing")
    assert (made["judges"]["j"]["n"], made["judges"]["j"]["unparsed"]) == (4, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": 3, "judges": {"j": 1}}], r"pairs\.jsonl:1: `label` must be 1, 2, 0.*got `3`"),
        ([{"label": True, "judges": {"j": 1}}], "got `True`"),
        ([{"label": float("nan"), "judges": {"j": 1}}], r"missing|got `nan`"),
        ([{"label": 1, "judges": {"j": "left"}}], r"`j` must be 1, 2, 0, .*got `left`"),
        ([{"label": 1, "judges": {"j": {"first_order": 1}}}], "needs `first_order` and `swapped`"),
        ([{"judges": {"j": 1}}], "there is no `label`"),
        ([{"label": 1}], "no verdicts of judges"),
        ([{"label": None, "judges": {"j": 1}}], "no row has a label"),
        ([], "holds no pairs"),
    ],
)
def test_what_is_no_pair_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], message: str
):
    with pytest.raises(UserError, match=message):
        report(capsys, write(tmp_path, rows))


def test_a_judge_who_says_little_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"label": 1, "judges": {"j": 1 if index else None}} for index in range(10)]
    path = write(tmp_path, rows)
    with pytest.raises(UserError, match="j gave readable verdicts on 9 of 10 pairs"):
        report(capsys, path)
    assert report(capsys, path, "--allow-missing")["judges"]["j"]["accuracy"] == 0.9


@pytest.mark.parametrize(
    ("scores", "argv", "message"),
    [
        ([1.5], ("--judge", "one"), r"verdicts\.jsonl:1: `score` must be from 0 to 1"),
        ([None], ("--judge", "one"), "no row has a `score`"),
        ([1.0], (), "give `--judge`, one of one, two"),
        ([1.0], ("--judge", "ona"), "unknown judge `ona`; did you mean `one`"),
    ],
)
def test_verdicts_that_do_not_fit_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scores, argv, message: str
):
    pairs = write(tmp_path, GENERAL)
    verdicts = write(tmp_path, [{"score": score} for score in scores], "verdicts.jsonl")
    with pytest.raises(UserError, match=message):
        report(capsys, pairs, "--allow-missing", "--verdicts", verdicts, *argv)
