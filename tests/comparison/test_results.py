"""Estimates, checks and verdicts against what can be worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignment.cli import UserError
from alignment.comparison.claims import CLAIMS, Check
from alignment.comparison.methods import METHODS, PARTS, chosen
from alignment.comparison.page import COLUMNS, rows_of, write
from alignment.comparison.results import MEASURES, Results, estimate, gather
from alignment.objectives import load_objective

FACTS = {
    "command": "alignment compare --methods main",
    "commit": "abc",
    "size": {"steps": 1, "held_out_prompts": 40},
}


def test_a_mean_weighs_seeds_alike_and_has_the_interval_of_the_normal_law():
    rng = np.random.default_rng(1)
    values = [rng.normal(mean, 1.0, size) for mean, size in ((0.0, 400), (1.0, 100))]
    found = estimate([list(one) for one in values])
    means = [one.mean() for one in values]
    assert found.seeds == pytest.approx(tuple(means))
    assert found.mean == pytest.approx(np.mean(means))
    error = np.sqrt(sum(one.var() / one.size for one in values)) / 2
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.1)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.1)


@pytest.mark.parametrize("values", [[], [[1.0], []]])
def test_a_mean_of_nothing_is_refused(values: list[list[float]]):
    with pytest.raises(ValueError, match="at least one value of each seed"):
        estimate(values)


@pytest.mark.parametrize(
    ("values", "above", "below", "not_below"),
    [
        ([[0.2] * 5, [0.3] * 5], True, False, True),
        ([[-0.2] * 5, [-0.3] * 5], False, True, False),
        ([[-0.1] * 5, [0.6] * 5], False, False, True),  # a seed on the other side
        ([[-1.0, 1.0] * 9, [-1.0, 1.0] * 9], False, False, True),  # an interval over zero
    ],
)
def test_a_check_needs_its_interval_and_every_seed_on_one_side(
    values: list[list[float]], above: bool, below: bool, not_below: bool
):
    found = estimate(values)
    assert Check("", found, "above").holds == above
    assert Check("", found, "below").holds == below
    assert Check("", found, "not below").holds == not_below


def results_with(**right: float) -> Results:
    """Two seeds of ten prompts; each measure of a method is its number everywhere."""
    values = {
        name: {measure: {0: [number] * 10, 1: [number] * 10} for measure in MEASURES}
        for name, number in right.items()
    }
    costs = {name: {"seconds": [1.0, 3.0], "peak_bytes": [1e6, 3e6]} for name in right}
    start = {m: {0: [0.5] * 10, 1: [0.5] * 10} for m in ("accurate", "right", "length")}
    facts = [
        {
            "advice": {"pairs": [1.0, 0.75], "worse_pairs": [0.0]},
            "overlap": {"pairs": 0.9, "judged_pairs": 0.5, "stronger_pairs": 0.4},
            "accuracy": {"stronger_pairs": [1.0], "provenance_pairs": [1.0, 0.0]},
        }
    ] * 2
    return Results((0, 1), start, values, costs, facts, {})


def test_methods_are_compared_over_the_seeds_that_have_both():
    results = results_with(dpo=0.7, cpo=0.5)
    del results.methods["cpo"]["right"][0]  # type: ignore[attr-defined]
    assert results.of("dpo", "right").seeds == pytest.approx((0.7, 0.7))
    assert results.difference("dpo", "cpo").seeds == pytest.approx((0.2,))
    assert results.gain("cpo").seeds == pytest.approx((0.0,))


def verdict(name: str, results: Results) -> str:
    return next(claim for claim in CLAIMS if claim.name == name).judge(results).verdict


@pytest.mark.parametrize(
    ("name", "results", "expected"),
    [
        ("InfoNCA gains from more than two responses", {"infonca": 0.8}, "not run"),
        (
            "InfoNCA gains from more than two responses",
            {"infonca": 0.8, "infonca_pairs": 0.7},
            "confirmed",
        ),
        (
            "InfoNCA gains from more than two responses",
            {"infonca": 0.7, "infonca_pairs": 0.7},
            "not confirmed",
        ),
        ("The wrong APO hurts", {"apo_down": 0.1, "apo_zero_on_worse": 0.2}, "confirmed"),
        ("The wrong APO hurts", {"apo_down": 0.1, "apo_zero_on_worse": 0.6}, "not confirmed"),
        ("The diagnostic picks the right APO", {}, "confirmed"),
        ("PopAlign's contrasts by accuracy", {}, "cannot be tested here"),
    ],
)
def test_a_claim_gets_the_verdict_that_its_numbers_give(
    name: str, results: dict[str, float], expected: str
):
    assert verdict(name, results_with(**results)) == expected


def test_every_claim_names_methods_that_exist_and_says_what_it_expects():
    known = {method.name for method in METHODS}
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert set(claim.methods) <= known
        assert claim.expects.endswith(".")


def test_every_method_has_an_objective_that_takes_its_hyper_parameters():
    assert len({method.name for method in METHODS}) == len(METHODS)
    for method in METHODS:
        assert method.part in PARTS
        assert bool(method.objective) == (method.part != "free")
        if method.objective:
            assert load_objective(method.objective, dict(method.kwargs))


def test_ways_to_decode_have_no_log_probs_and_say_how_fast_they_are(tmp_path: Path):
    results = results_with(contrastive=0.6)
    for measure in ("right", "chosen", "rejected"):
        del results.methods["contrastive"][measure]  # type: ignore[attr-defined]
    results.costs["contrastive"]["tokens_per_second"] = [10.0, 20.0]  # type: ignore[index]
    _, _, row = rows_of(results, "free")
    assert row[4:7] == ["", "", ""]
    assert row[-2] == "2 (15 tokens/s)"
    assert set(results.as_json()["methods"]["contrastive"]) >= {"win", "kl", "tokens_per_second"}
    write(results, FACTS, tmp_path / "page.md")
    assert "| contrastive | 2 | 0.600 |" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.png").is_file()


@pytest.mark.parametrize(
    ("names", "count"), [(["main"], 8), (["dpo", "cut"], 2), (["main", "dpo"], 8)]
)
def test_methods_are_named_singly_or_by_part(names: list[str], count: int):
    assert len(chosen(names)) == count


def test_an_unknown_method_is_told_with_the_nearest():
    with pytest.raises(UserError, match="unknown method `infonce`; did you mean `infonca`"):
        chosen(["infonce"])


def test_the_table_has_the_start_and_every_method_that_was_run():
    rows = rows_of(results_with(dpo=0.7), "main")
    assert [row[0] for row in rows] == ["method", "(start)", "dpo"]
    assert rows[2][1] == "2"
    assert rows[2][-2:] == ["2", "2"]
    assert not rows_of(results_with(dpo=0.7), "wider")
    assert set(COLUMNS) == set(MEASURES)


def test_the_page_stands_beside_its_figure_and_its_numbers(tmp_path: Path):
    page = tmp_path / "docs/evidence.md"
    write(results_with(dpo=0.7, apo_down=0.1, apo_zero_on_worse=0.2), FACTS, page)
    text = page.read_text()
    assert "| dpo | 2 | 0.700 |" in text
    assert (
        "| The wrong APO hurts | [2408.06266](https://arxiv.org/abs/2408.06266) | **confirmed** |"
        in text
    )
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(page.with_suffix(".json").read_text())
    assert record["methods"]["dpo"]["win"]["mean"] == pytest.approx(0.7)
    assert {claim["verdict"] for claim in record["claims"]} >= {"confirmed", "not run"}


def test_the_page_shows_what_loops_came_to_where_that_lies_beside_it(tmp_path: Path):
    page = tmp_path / "evidence.md"
    found = {
        "by_round": [[0.5, 0.7], [0.6, 0.8]],
        "online": [0.7, 0.8],
        "offline": [0.6, 0.5],
        "examples_online": [400, 390],
        "examples_offline": [400, 390],
        "difference": 0.2,
        "difference_ci": [0.1, 0.3],
        "comparisons": 80,
    }
    record = {"commit": "abc", "settings": {"rounds": "2"}, "methods": {"cut": found}}
    page.with_name("loops.json").write_text(json.dumps(record))
    write(results_with(dpo=0.7), FACTS, page)
    row = "| cut | 2 | 80 | 400 390 | 0.550 0.750 | 0.550 | +0.200 [+0.100, +0.300] |"
    assert row in page.read_text()


def test_a_folder_without_a_finished_seed_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="holds no finished seed; run `alignment compare` first"):
        gather(tmp_path, [0])
