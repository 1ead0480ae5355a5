"""Several models: every pair, matched lengths, ratings, tests and their correction."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from eval.tournament import report
from tests.eval import test_winrate
from tests.eval.test_winrate import write


def row(model: str, prompt: str, score: float | None, answer: str = "ab", against: str = "base"):
    votes = [{"first": "answer", "preference": score, "fault": None, "text": "", "weighted": False}]
    if score is None:
        votes[0] |= {"fault": "unparseable", "text": "hm"}
    return {
        **{"model": model, "against": against, "prompt": prompt, "answer": answer},
        **{"baseline": "ab", "score": score, "consistent": None, "votes": votes},
    }


def test_a_single_pair_stands_at_the_top():
    """Six wins of six: of 64 sets of signs 2 are as extreme, p = 1/32."""
    made = report([row("a", f"p{i}", 1.0) for i in range(6)], 0, 200, 0.1)
    assert (made["win_rate"], made["n_prompts"]) == (1.0, 6)
    assert made["p_value"] == made["p_value_holm"] == 2 / 64
    assert (made["ratings"], made["paired_tests"]) == ({}, [])


def test_matched_lengths_are_within_a_share_of_the_longer():
    """Lengths 2, 20 and 2 against 2: the win of the long answer is left out."""
    rows = [row("a", "p", 0.0), row("a", "q", 1.0, "x" * 20), row("a", "r", 0.5)]
    made = report(rows, 0, 50, 0.1)
    assert made["win_rate"] == 0.5
    matched = made["length_matched"]
    assert (matched["win_rate"], matched["n_prompts"]) == (0.25, 2)
    assert report(rows[1:2], 0, 50, 0.1)["length_matched"] is None


def test_models_that_met_one_baseline_are_tested_on_shared_prompts():
    """a is better by 1, 1, 1 and 0 on p0 to p3; b's p4 is unjudged: 2 of 8 sets of signs."""
    rows = [row("a", f"p{i}", 1.0) for i in range(5)]
    rows += [row("b", f"p{i}", float(i == 3)) for i in range(4)] + [row("b", "p4", None)]
    made = report(rows, 0, 200, 0.1)
    (test,) = made["paired_tests"]
    assert (test["models"], test["n_prompts"], test["difference"]) == (["a", "b"], 4, 0.75)
    assert test["p_value"] == 2 / 8
    assert test["p_value_holm"] == pytest.approx(0.5)
    assert list(made["ratings"]) == ["a", "base", "b"]
    assert made["pairs"][1]["unjudged"] == 1


def run(folder: Path, answers: dict[str, dict[str, str]], *words: str) -> dict[str, Any]:
    files = [str(write(folder / f"{name}.jsonl", said)) for name, said in answers.items()]
    command = ["eval", "winrate", "--answers", *files, "--output", str(folder / "out")]
    command += ["--judge-model", f"program:{test_winrate.__name__}.judge", "--resamples", "100"]
    dispatch([*command, *words])
    return json.loads((folder / "out" / "results.json").read_text())


SAID = {
    "long": {f"p{i}": f"answer number {i} at length" for i in range(8)},
    "middle": {f"p{i}": f"answer {i}" for i in range(8)},
    "short": {f"p{i}": f"a{i}" for i in range(8)},
}


def test_without_a_baseline_each_meets_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = run(tmp_path, SAID)
    met = [(pair["model"], pair["against"], pair["win_rate"]) for pair in made["pairs"]]
    assert met == [("long", "middle", 1.0), ("long", "short", 1.0), ("middle", "short", 1.0)]
    assert list(made["ratings"]) == ["long", "middle", "short"]
    told = capsys.readouterr().out
    assert "long against middle: win rate 1.000" in told
    assert "long: rating " in told


def test_a_bundle_gives_the_numbers_again(tmp_path: Path):
    made = run(tmp_path, SAID)
    (tmp_path / "out" / "results.json").unlink()
    dispatch(["eval", "winrate", "--bundle", str(tmp_path / "out")])
    again = report(
        (json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").open()), 0, 100, 0.1
    )
    assert {name: made[name] for name in again} == json.loads(json.dumps(again))


def test_a_pair_of_which_too_little_is_judged_is_refused(tmp_path: Path):
    said = {**SAID, "prose": {f"p{i}": "prose" if i < 7 else "x" for i in range(8)}}
    with pytest.raises(UserError, match="only 1 of 8 prompts"):
        run(tmp_path, said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs `--answers`"),
        (["--answers", "a"], "needs `--baseline` .*or several files"),
        (["--answers", "a", "b"], "needs `--output`"),
        (["--bundle", "o", "--answers", "a"], "`--bundle` recomputes a run"),
        (["--answers", "a", "a", "--output", "o"], "a file is given twice"),
    ],
)
def test_options_that_do_not_fit_are_told(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        dispatch(["eval", "winrate", *words])
