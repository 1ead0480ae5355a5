"""The published numbers of AlpacaEval come out of the published verdicts."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.__main__ import dispatch
from alignment.core.rows import read_rows
from eval.alpaca_report import LengthControl, report
from eval.answers import SUSPICIOUS, repetition
from eval.length_control import win_rate
from tests.eval.shared import MODELS, Published

LEADERBOARD = ("win_rate", "standard_error", "discrete_win_rate")
COUNTS = ("n_total", "n_wins", "n_wins_base", "n_draws")


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> Published:
    return Published.read(shared_dir)


@pytest.fixture(autouse=True)
def _without_comparing_answers(monkeypatch: pytest.MonkeyPatch):
    """It takes a second for each report, and changes no number."""
    monkeypatch.setattr("eval.alpaca_report.warn_of_repetition", lambda *_: {})


def by_row(published: Published, model: str, **how: Any) -> dict[str, Any]:
    settings = LengthControl(published.reference, by="row", resamples=2, **how)
    return report(published.benchmark, published.verdicts(model), settings)


def weights_of(expected: dict[str, Any]) -> tuple[float, float, float]:
    weights = expected["published"]["glm_weights"]
    return weights["length"], weights["difficulty"], weights["model"]


@pytest.mark.parametrize("model", MODELS)
def test_win_rates_and_counts_are_the_published_ones(published: Published, model: str):
    expected = published.expected[model]
    made = by_row(published, model, weights=weights_of(expected))
    for name in LEADERBOARD:
        assert made[name] == pytest.approx(expected["published"][name], abs=1e-8)
    assert {name: made[name] for name in COUNTS} == {name: expected[name] for name in COUNTS}
    assert made["avg_length"] == expected["avg_length_recomputed"]


@pytest.mark.parametrize("model", MODELS)
def test_the_published_weights_give_the_published_rate(published: Published, model: str):
    expected = published.expected[model]
    made = by_row(published, model, weights=weights_of(expected))
    rate = expected["published"]["length_controlled_winrate"]
    assert made["length_controlled_winrate"] == pytest.approx(rate, abs=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_a_refit_at_the_published_c_is_at_the_exact_optimum(published: Published, model: str):
    expected = published.expected[model]
    made = by_row(published, model, c=expected["published"]["inferred_C"])
    optimum = expected["official_code_rerun"]["fixed_published_C_exact_optimum"]
    rate = optimum["length_controlled_winrate"]
    assert made["length_controlled_winrate"] == pytest.approx(rate, abs=1e-8)
    assert made["lc_weights"] == pytest.approx(optimum["glm_weights"], abs=1e-8)
    assert made["lc_gap"] < 1e-11


@pytest.mark.parametrize("model", MODELS)
def test_cross_validation_chooses_the_published_c(published: Published, model: str):
    expected = published.expected[model]
    made = by_row(published, model)
    assert made["lc_c"] == pytest.approx(expected["published"]["inferred_C"])
    rate = expected["published"]["length_controlled_winrate"]
    # The published fits stopped up to 0.016 before their optimum.
    assert made["length_controlled_winrate"] == pytest.approx(rate, abs=0.02)


def test_real_answers_raise_no_warning_of_repetition(published: Published):
    for model in ("text_davinci_001", "gpt-3.5-turbo-1106_concise"):
        rows = published.verdicts(model).rows
        assert repetition([str(row.answer) for row in rows]).share < SUSPICIOUS / 2


def test_without_reference_rows_it_is_the_unregularised_model(published: Published):
    for model in ("claude-2", "vicuna-13b-v1.5-togetherai"):
        settings = LengthControl(by="row", resamples=2)
        made = report(published.benchmark, published.verdicts(model), settings)
        rerun = published.expected[model]["official_code_rerun"]["length_controlled_noreg"]
        assert made["length_controlled_winrate"] == pytest.approx(rerun["winrate"], abs=0.12)
        assert "without reference rows" in made["lc_note"]


def test_pairing_by_prompt_corrects_a_file_with_missing_rows(published: Published):
    """Two rows are missing: by row most prompts get another's difficulty, 9.03 for 6.58."""
    settings = LengthControl(published.reference, c=2.782559402207126, resamples=2)
    made = report(published.benchmark, published.verdicts("text_davinci_001"), settings)
    assert made["length_controlled_winrate"] == pytest.approx(6.576, abs=5e-4)


def test_rates_of_the_public_table_follow_from_its_weights(published: Published):
    """188 rows of weights; the two models whose rows contradict each other are known."""
    with (published.folder / "leaderboard_v2.csv").open() as file:
        board = {row[""]: row for row in csv.DictReader(file)}
    difficulty = np.array([prompt.difficulty for prompt in published.benchmark.prompts])
    features = np.column_stack([difficulty, np.ones(len(difficulty))])
    checked, apart = 0, []
    with (published.folder / "glm_weights.csv").open() as file:
        for name, *weights in list(csv.reader(file))[1:]:
            if name not in board or not board[name]["length_controlled_winrate"]:
                continue
            rows = int(float(board[name]["n_total"]))  # a missing row shifts those below it
            made = win_rate(np.array(weights, dtype=float), features[:rows])
            rate = float(board[name]["length_controlled_winrate"])
            checked += 1
            if abs(made - rate) > 1e-6:
                apart.append(name)
    assert checked > 170
    assert len(apart) <= 8


def test_verdicts_of_the_first_version_give_its_numbers(
    published: Published, capsys: pytest.CaptureFixture[str]
):
    """No answers stand in that file, so there is no length to control for."""
    expected = json.loads((published.folder / "v1_expected.json").read_text())
    for model, numbers in expected.items():
        words = ["--annotations", str(published.folder / "v1_preferences.jsonl.gz")]
        words += ["--prompts", str(published.folder / "prompts.jsonl.gz"), "--model", model]
        dispatch(["eval", "alpaca_eval", *words, "--json", "-"])
        made = json.loads(capsys.readouterr().out)
        for name in ("win_rate", "standard_error"):
            assert made[name] == pytest.approx(numbers[name], abs=1e-10)
        assert {name: made[name] for name in COUNTS} == {name: numbers[name] for name in COUNTS}
        assert made["length_controlled_winrate"] is None


@pytest.mark.parametrize("by", ["prompt", "row"])
@pytest.mark.parametrize("layout", ["official", "shuffled"])
def test_other_layouts_and_orders_give_the_same_numbers(
    published: Published, layout: str, by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [row for _, row in read_rows(published.annotations("claude-2"))]
    prompts = published.benchmark.prompts
    if layout == "official":
        rows = [
            {
                "instruction": prompts[row["index"]].text,
                "output_1": prompts[row["index"]].baseline,
                "generator_1": "gpt4_1106_preview",
                "output_2": row["output"],
                "generator_2": row["model"],
                "preference": row["preference"],
                "raw_completion": None,
            }
            for row in rows
        ]
    else:
        np.random.default_rng(0).shuffle(rows)
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(rows))
    words = ["--prompts", str(published.folder / "prompts.jsonl.gz"), "--resamples", "2"]
    words += ["--difficulty-by", by]
    words += ["--reference", str(published.folder / "lc_reference.csv.gz"), "--json", "-"]
    made = []
    for annotations in (published.annotations("claude-2"), file):
        dispatch(["eval", "alpaca_eval", "--annotations", str(annotations), *words])
        told = json.loads(capsys.readouterr().out)
        made.append([told[name] for name in (*LEADERBOARD, *COUNTS, "length_controlled_winrate")])
    assert made[0] == pytest.approx(made[1], abs=1e-9)
