"""Verdicts that do not fit are counted, listed and refused; nothing is paired by position."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError

Rows = list[dict[str, Any]]
PROMPTS = [
    {"index": i, "instruction": f"question {i}", "baseline_output": "b" * (10 + i % 7)}
    for i in range(40)
]


def verdicts(seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return [
        {
            "index": i,
            "model": "mine",
            "output": f"{rng.integers(10**9):x} " * int(rng.integers(1, 6)),
            "preference": float(1 + rng.random()),
        }
        for i in range(40)
    ]


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on rows; gives its one JSON object, with `stderr` added."""

    def made(rows: Rows, *words: str, prompts: Rows = PROMPTS) -> dict[str, Any]:
        for name, content in (("annotations.jsonl", rows), ("prompts.jsonl", prompts)):
            lines = "".join(json.dumps(row) + "\n" for row in content)
            (tmp_path / name).write_text(lines)
        files = ["--annotations", str(tmp_path / "annotations.jsonl")]
        files += ["--prompts", str(tmp_path / "prompts.jsonl")]
        dispatch(["eval", "alpaca_eval", *files, "--resamples", "20", "--json", "-", *words])
        captured = capsys.readouterr()
        return {**json.loads(captured.out), "stderr": captured.err}

    return made


def test_numbers_are_those_of_a_mean(run: Run):
    """2, 1, 1.5, 0, 1.75: (1 + 0 + .5 + .5 + .75) / 5 = .55; rounded (1 + 0 + .5 + .5 + 1) / 5."""
    rows = [{"index": i, "preference": p} for i, p in enumerate([2, 1, 1.5, 0, 1.75])]
    made = run(rows, prompts=PROMPTS[:5])
    assert made["win_rate"] == pytest.approx(55.0)
    assert made["discrete_win_rate"] == pytest.approx(60.0)
    scores = np.array([1, 0, 0.5, 0.5, 0.75])
    assert made["standard_error"] == pytest.approx(100 * scores.std(ddof=1) / math.sqrt(5))
    counts = [made[name] for name in ("n_total", "n_wins", "n_wins_base", "n_draws", "unjudged")]
    assert counts == [5, 2, 1, 2, 0]
    assert made["avg_length"] is None
    assert "answer to prompt 0 is not in the files" in made["lc_note"]


def test_the_order_of_rows_is_nothing(run: Run):
    rows = verdicts()
    there, back = run(rows), run(rows[::-1])
    for name in ("win_rate", "length_controlled_winrate", "lc_ci", "lc_weights", "avg_length"):
        assert there[name] == pytest.approx(back[name], rel=1e-9)


def test_own_prompts_leave_difficulty_out_and_say_so(run: Run):
    made = run([{**row, "preference": 1.9 - row["index"] % 3 / 3} for row in verdicts()])
    assert set(made["lc_weights"]) == {"length", "model"}
    assert made["lc_difficulty"] == "left out: the prompts have none"
    assert made["lc_ci"][0] < made["length_controlled_winrate"] < made["lc_ci"][1]


def test_own_prompts_may_have_their_difficulty_estimated(run: Run, tmp_path: Path):
    """The other model loses on odd prompts, and so does mine: the weight is above zero."""
    rows = verdicts()
    for row in rows:
        row["preference"] = 1.1 if row["index"] % 2 else 1.9
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "model": "other"}) + "\n" for row in rows))
    made = run(rows, "--difficulty-from", str(other))
    assert made["lc_difficulty"] == "estimated from other models"
    assert made["lc_weights"]["difficulty"] > 0.5
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="holds verdicts on mine itself"):
        run(rows, "--difficulty-from", str(other))


def test_missing_doubled_and_foreign_prompts_are_counted_and_listed(run: Run):
    rows = verdicts()
    whole = run(rows)
    foreign = {**rows[0], "index": 900}
    made = run([*rows[1:], rows[5], foreign])
    assert (made["missing"], made["doubled"]) == ([0], [5])
    assert made["foreign"] == ["annotations.jsonl:41: 900"]
    assert (made["n_total"], made["unjudged"], made["n_rows"]) == (39, 1, 41)
    for told in ("1 prompts have no row: 0", "1 rows repeat a prompt", "1 rows are on prompts"):
        assert told in made["stderr"]
    assert run([*rows, rows[5], foreign])["win_rate"] == whole["win_rate"]


def test_rows_that_contradict_each_other_are_no_verdict(run: Run):
    rows = verdicts()
    made = run([*rows, {**rows[3], "preference": 2.0 - (rows[3]["preference"] - 1.0)}])
    assert (made["n_total"], made["doubled"], made["unjudged"]) == (39, [3], 1)
    assert made["win_rate"] == pytest.approx(run(rows[:3] + rows[4:])["win_rate"])


def test_an_index_that_is_another_prompts_text_is_foreign(run: Run):
    rows = verdicts()
    rows[7]["instruction"] = "question 8"
    rows[8]["instruction"] = "question 8"
    made = run(rows)
    assert (made["missing"], len(made["foreign"])) == ([7], 1)


@pytest.mark.parametrize("nothing", [None, math.nan, ""])
def test_a_verdict_that_is_not_there_is_unjudged(run: Run, nothing: Any):
    rows = verdicts()
    rows[4]["preference"] = nothing
    made = run(rows)
    assert (made["n_total"], made["unjudged"], made["missing"]) == (39, 1, [])


def test_too_few_verdicts_are_refused_unless_allowed(run: Run):
    rows = verdicts()[:37]
    rows[0]["preference"] = None
    with pytest.raises(
        UserError, match=r"only 36 of 40 prompts are judged .* 3 without a row \(37"
    ):
        run(rows)
    made = run(rows, "--allow-missing")
    assert (made["n_total"], made["missing"]) == (36, [37, 38, 39])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": 2.5}, r"annotations.jsonl:3: `preference` is 2.5; it is between 1"),
        ({"preference": 0.7}, r"annotations.jsonl:3: `preference` is 0.7"),
        ({"preference": -1}, r"`preference` is -1.0"),
        ({"preference": math.inf}, r"`preference` must be a number, got `inf`"),
        ({"preference": "good"}, r"`preference` must be a number, got `good`"),
        ({"preference": True}, r"`preference` must be a number, got `True`"),
        ({"index": None}, r"annotations.jsonl:3: no `index` or `instruction` by which"),
        ({"index": "two"}, r"`index` must be a number, got `two`"),
        ({"index": 1.5}, r"`index` must be a whole number"),
        ({"output": 7}, r"`output` must be text, got `7`"),
        ({"model": "other"}, r"holds verdicts on mine, other; name one with `--model`"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(run: Run, change: dict[str, Any], message: str):
    rows = verdicts()
    rows[2].update(change)
    with pytest.raises(UserError, match=message):
        run(rows)


def test_a_column_that_is_missing_is_named(run: Run):
    rows = [{"index": i, "preferences": 1.0} for i in range(40)]
    with pytest.raises(UserError, match=r"no column `preference`; there is index, preferences"):
        run(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--c", "0"], "`c` is 0.0; it must be above 0"),
        (["--weights", "1", "2"], "`weights` takes three numbers"),
        (["--model", "yours"], "holds no verdicts on `yours`; it has those on mine"),
        (["--difficulty-by", "column"], "expects one of prompt, row"),
    ],
)
def test_an_option_that_cannot_be_is_told(run: Run, words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        run(verdicts(), *words)


def test_files_on_other_prompts_are_refused(run: Run, tmp_path: Path):
    rows = [{**row, "index": row["index"] + 100} for row in verdicts()]
    with pytest.raises(UserError, match=r"none of 40 rows is on a prompt of .*; the first is"):
        run(rows)
    baseline = tmp_path / "baseline.jsonl"
    for content, message in (
        ([{"index": 99, "output": "b"}], r"the prompt `99` is not in .*same prompts"),
        ([{"index": 1, "output": "b"}] * 2, r"the prompt `1` is answered twice"),
        ([{"index": 1, "output": "b"}], r"answers 1 of 40 prompts .* without an answer is 0"),
    ):
        baseline.write_text("".join(json.dumps(row) + "\n" for row in content))
        with pytest.raises(UserError, match=message):
            run(verdicts(), "--baseline", str(baseline))


def test_prompts_that_stand_there_twice_are_refused(run: Run):
    with pytest.raises(UserError, match="the prompt `question 3` stands there twice"):
        run(verdicts(), prompts=[*PROMPTS, {**PROMPTS[3], "index": 77}])


def test_difficulty_of_some_prompts_alone_is_refused(run: Run):
    prompts = [{**row, "instruction_difficulty": 0.1} for row in PROMPTS[:39]] + PROMPTS[39:]
    with pytest.raises(UserError, match="1 of 40 prompts lack `instruction_difficulty`"):
        run(verdicts(), prompts=prompts)


def test_a_constant_answer_raises_a_warning(run: Run, caplog: pytest.LogCaptureFixture):
    rows = [{**row, "output": "I am the best answer."} for row in verdicts()]
    assert run(rows)["repeated_share"] == 1.0
    assert "near-identical answers" in caplog.text


def test_a_model_against_itself_is_a_draw(run: Run):
    rows = [
        {**row, "output": p["baseline_output"], "preference": 0}
        for row, p in zip(verdicts(), PROMPTS, strict=True)
    ]
    made = run(rows)
    assert (made["win_rate"], made["length_controlled_winrate"]) == (50.0, 50.0)
    assert (made["standard_error"], made["n_draws"], made["lc_ci"]) == (0.0, 40, [50.0, 50.0])
