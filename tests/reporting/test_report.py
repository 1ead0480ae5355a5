"""What a report says of each kind of run, and what it says of what is not there."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.pages.blocks import Block, Charts, Exchange, Facts, Intervals, Note, Table
from alignment.reporting.exchanges import by_length, outcome, some_of_each
from alignment.reporting.figures import duration, shown, size
from alignment.reporting.report import Report, gather
from tests.pages.hostile import HOSTILE
from tests.reporting import made

ROOT = Path(__file__).parents[2]


def report_of(path: Path, examples: int = 4) -> Report:
    """The report of a run; its page can be drawn."""
    found = gather(path, examples, 0)
    assert found.page().startswith("<!doctype html>")
    return found


def section(report: Report, name: str) -> Any:
    return next(each for each in report.sections if each.name == name)


def words(blocks: Iterable[Block]) -> str:
    """All facts, notes and cells of a section, in order."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Facts):
            parts += [f"{name}: {value}" for name, value in block.rows]
        elif isinstance(block, Table):
            parts += [block.title, *(" | ".join(row) for row in block.rows)]
        elif isinstance(block, Intervals):
            parts += [
                block.title,
                *(f"{r.name} {r.value} ({r.interval}) {r.note}" for r in block.rows),
            ]
        elif isinstance(block, Note):
            parts.append(block.text)
    return "\n".join(parts)


# ---- Training ----


def test_a_training_run_is_told_from_settings_to_machine(tmp_path: Path):
    report = report_of(made.training(tmp_path))
    assert [each.name for each in report.sections] == [
        *("Training", "Configuration", "Data", "Time and machine")
    ]
    assert (report.told, report.title) == ("Training", "run")
    training = section(report, "Training")
    assert training.headline[:2] == [
        ("0.6667", "loss, evaluation"),
        ("0.6", "accuracy of implicit rewards, evaluation"),
    ]
    told = words(training.blocks)
    assert "Step 10: margin from the rejected side only: words" in told
    assert "loss | 0.8333 | 0.6667" in told
    assert "Rows that rejects.jsonl in the run's folder lists with reasons: 1." in told
    assert "adapter: r 16, target_modules q_proj" in words(section(report, "Configuration").blocks)
    costs = words(section(report, "Time and machine").blocks)
    assert "tokens per second: 50" in costs
    assert "time of the steps: 1 min 40 s" in costs
    assert "checkpoint-20 | unknown: it was not finished | \ncheckpoint-40 | yes | 2.0 MB" in costs


def test_curves_hold_training_evaluation_sides_and_verdicts(tmp_path: Path):
    blocks = section(report_of(made.training(tmp_path)), "Training").blocks
    (charts,) = [block.charts for block in blocks if isinstance(block, Charts)]
    by_title = {chart.title: chart for chart in charts}
    assert list(by_title)[:2] == ["Loss", "Log-ratio to the reference"]
    loss, ratios = by_title["Loss"], by_title["Log-ratio to the reference"]
    assert [line.name for line in loss.lines] == ["training", "evaluation"]
    assert [line.tone for line in ratios.lines] == ["chosen", "rejected"]
    assert [alarm.label for alarm in loss.alarms] == ["margin from the rejected side only"]
    assert loss.stops[19].told == "step 20: training 0.8, evaluation 0.8333"
    assert "epoch" not in by_title


def test_the_data_of_a_run_is_shown_with_contrast_losses_and_rows(tmp_path: Path):
    blocks = section(report_of(made.training(tmp_path)), "Data").blocks
    told = words(blocks)
    assert "rows: 9" in told
    assert "pairs: 8" in told
    assert "Rows that training rejects: 1" in told
    assert "Rows that the builder dropped: 1" in told
    rows = [block for block in blocks if isinstance(block, Exchange)]
    assert len(rows) == 4
    assert [list(answer.pieces) for answer in rows[0].answers] == [
        [("words ", False), ("good", True)],
        [("words ", False), ("bad", True)],
    ]


def test_what_a_training_run_lacks_is_said_in_a_line(tmp_path: Path):
    run = made.training(tmp_path)
    (run / "run.json").unlink()
    lacking = report_of(run)
    assert "no run.json, so its settings" in words(section(lacking, "Configuration").blocks)
    assert "does not say which data" in words(section(lacking, "Data").blocks)
    data = tmp_path / "gone.jsonl"
    (run / "run.json").write_text(json.dumps(made.record("words", data, seconds=None)))
    (run / "metrics.jsonl").unlink()
    lacking = report_of(run)
    assert f"{data} is not here" in words(section(lacking, "Data").blocks)
    assert "so there are no curves" in words(section(lacking, "Training").blocks)
    assert "did not come to its end" in words(section(lacking, "Time and machine").blocks)


def test_a_line_that_a_crash_cut_and_values_that_are_no_number_are_told(tmp_path: Path):
    run = made.training(tmp_path)
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": 0.5}', '{"step": 3, "lo']
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "{"step": 4}', "[1]"]))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\n{"step": 5, "\xff')
    told = words(section(report_of(run), "Training").blocks)
    assert "metrics.jsonl that a crash has cut short: 4." in told
    assert "no number: loss at step 1" in told
    assert "The log warned of nothing." in told


def test_a_record_that_lacks_something_is_one_line(tmp_path: Path):
    run = made.training(tmp_path)
    (run / "run.json").write_text('{"version": "0.0.1"}')
    with pytest.raises(
        UserError, match=r"a file of .*run lacks 'objective', so it is not one that"
    ):
        gather(run, 4, 0)


# ---- Win rates ----


def test_a_win_rate_is_told_with_interval_length_judge_and_answers(tmp_path: Path):
    """Of 30 prompts 12 are won, 6 lost, 6 tied, 6 not judged: (12 + 3) / 24 = .625."""
    report = report_of(made.winrate(tmp_path), examples=8)
    assert [each.name for each in report.sections] == ["Evaluation", "Length", "Judge", "Answers"]
    told = words(section(report, "Evaluation").blocks)
    assert "new against old 0.625 (" in told
    assert "new against old | 12 | 6 | 6 | 6" in told
    assert "both" not in told
    assert "unparseable 12" in words(section(report, "Judge").blocks)
    lengths = words(section(report, "Length").blocks)
    assert "Length against win rate" in lengths
    answers = [b for b in section(report, "Answers").blocks if isinstance(b, Exchange)]
    assert [each.outcome for each in answers] == [
        *("win of new", "win of new", "loss of new", "loss of new"),
        *("tie", "tie", "unjudged", "unjudged"),
    ]
    assert answers[0].remarks[0] == ("judge, new shown first: prefers new", "words")
    assert answers[-1].remarks[0][0] == "judge, new shown first: no verdict: unparseable"


def test_several_models_have_ratings_and_paired_tests(tmp_path: Path):
    report = report_of(made.winrate(tmp_path, names=("a", "b", "c")))
    told = words(section(report, "Evaluation").blocks)
    assert "Bradley-Terry ratings" in told
    assert "a less b, against c | +0.000" in told


def test_advice_for_apo_is_told_with_its_certainty(tmp_path: Path):
    """As `eval zero_or_down` writes it: no pairs, and the model is that of the samples."""
    made.winrate(tmp_path)
    (pair,) = json.loads((tmp_path / "results.json").read_text())["pairs"]
    summary = {name: value for name, value in pair.items() if name != "against"}
    summary |= {"model": {"model": "m"}, "judge": {"model": "j"}, "length_matched": None}
    summary |= {"advice": "zero", "certain": False}
    (tmp_path / "results.json").write_text(json.dumps(summary))
    columns = ("prompt", "answer", "baseline", "score", "consistent", "votes")
    rows = [{name: row[name] for name in columns} for row in made.verdicts("w", ("a", "b"))]
    made.write_lines(tmp_path / "verdicts.jsonl", rows)
    report = report_of(tmp_path)
    told = words(section(report, "Evaluation").blocks)
    assert "chosen against sampled 0.625" in told
    assert "ask for APO-zero, though the interval holds one half." in told
    assert section(report, "Answers").blocks[1].answers[1].title == "sampled"


def test_an_evaluation_that_was_not_finished_says_how_to_go_on(tmp_path: Path):
    made.winrate(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "bundle.json").write_text("{}")
    assert "--resume goes on" in words(report_of(tmp_path).sections[0].blocks)


def test_results_without_verdicts_say_what_is_missing(tmp_path: Path):
    made.winrate(tmp_path)
    (tmp_path / "verdicts.jsonl").unlink()
    report = report_of(tmp_path)
    assert "no verdicts.jsonl to show answers from" in words(section(report, "Answers").blocks)


def test_lengths_are_told_in_classes_of_their_ratio():
    """Answers of 1, 4, 10 and 30 characters beside 10."""
    rows = [
        {"answer": "x" * n, "baseline": "y" * 10, "score": score}
        for n, score in ((1, 0.0), (4, 0.5), (10, 1.0), (10, 0.0), (30, 1.0), (30, None))
    ]
    found = by_length(rows)
    assert found is not None
    assert [(row.name, row.value, row.note) for row in found.rows] == [
        ("less than half as long", "0.250", "2 comparisons"),
        ("as long, within 10%", "0.500", "2 comparisons"),
        ("more than twice as long", "1.000", "1 comparisons"),
    ]
    assert by_length([{"answer": "a", "baseline": "", "score": 1.0}]) is None


def test_answers_to_show_are_drawn_from_every_outcome_under_the_seed():
    rows = [{"score": s, "votes": [1], "n": n} for n, s in enumerate([1.0] * 50 + [0.0, None])]
    drawn = some_of_each(rows, 5, seed=1)
    assert [outcome(row["score"]) for row in drawn] == ["win", "win", "win", "loss", "unjudged"]
    assert drawn == some_of_each(rows, 5, seed=1) != some_of_each(rows, 5, seed=2)


# ---- Other evaluators, by their commands ----


def judge(request: Request) -> str:
    """Prefers the longer answer; rates every answer 7."""
    text = as_text(request.prompt)
    parts = sections(text)
    if "answer_A" not in parts:
        return f"{HOSTILE} Rating: [[7]]"
    longer = len(parts["answer_A"]) > len(parts["answer_B"])
    return f"{HOSTILE}\nVerdict: {'A' if longer else 'B'}"


PROGRAM = ("--judge-model", f"program:{__name__}.judge", "--resamples", "20")


def test_alpaca_eval_is_told_with_length_control(tmp_path: Path):
    prompts = [
        {"instruction": f"{HOSTILE} {n}", "output": "abc" * (1 + n % 2), "generator": "base"}
        for n in range(12)
    ]
    answers = [
        {"instruction": f"{HOSTILE} {n}", "output": "abcd" * (1 + n % 3), "generator": HOSTILE}
        for n in range(12)
    ]
    files = [
        str(made.write_lines(tmp_path / name, rows))
        for name, rows in (("prompts.jsonl", prompts), ("answers.jsonl", answers))
    ]
    command = ["eval", "alpaca_eval", "--prompts", files[0], "--answers", files[1], *PROGRAM]
    dispatch([*command, "--judge", "pairwise", "--output", str(tmp_path / "out")])
    report = report_of(tmp_path / "out")
    (intervals,) = [b for b in report.sections[0].blocks if isinstance(b, Intervals)]
    assert [row.name for row in intervals.rows] == ["win rate", "length-controlled win rate"]
    assert section(report, "Answers").blocks[1].remarks[0][1].startswith(HOSTILE)


def test_mt_bench_is_told_by_category_with_its_judgments(tmp_path: Path):
    questions = [
        {"question_id": 81 + n, "category": category, "turns": ["first", "then"]}
        for n, category in enumerate(("writing", "maths"))
    ]
    answers = [
        {"question_id": 81 + n, "model_id": "new", "choices": [{"turns": ["one", HOSTILE]}]}
        for n in range(2)
    ]
    files = [
        str(made.write_lines(tmp_path / name, rows))
        for name, rows in (("questions.jsonl", questions), ("answers.jsonl", answers))
    ]
    command = ["eval", "mt_bench", "--questions", files[0], "--answers", files[1], *PROGRAM]
    dispatch([*command, "--output", str(tmp_path / "out")])
    report = report_of(tmp_path / "out")
    assert report.sections[0].headline == [("7.00", "new, average")]
    told = words(report.sections[0].blocks)
    assert "turn 1 7.00 (7.00 to 7.00)" in told
    assert "writing 7.00 (7.00 to 7.00)" in told
    assert "<h4>prompt</h4>" not in report.page()
    assert "not MT-Bench's" in told
    exchanges = [b for b in section(report, "Answers").blocks if isinstance(b, Exchange)]
    assert len(exchanges) == 4
    assert {each.answers[0].pieces[0][0] for each in exchanges} == {"one", HOSTILE}


def test_agreement_is_told_from_its_json(tmp_path: Path):
    file = tmp_path / "agreement.json"
    pairs = ROOT / "recipes/data/labelled_pairs.jsonl"
    dispatch(["eval", "agreement", "--pairs", str(pairs), "--resamples", "20", "--json", str(file)])
    report = report_of(file)
    assert report.sections[0].headline[0] == ("83.3%", "accuracy, judge")
    assert "judge | 0.667 | 0.676 | 0.686" in words(report.sections[0].blocks)


def test_translations_are_told_by_direction_with_intervals_and_tests(tmp_path: Path):
    pytest.importorskip("sacrebleu")
    texts = [f"the house is small and the garden green, number {n}" for n in range(12)]
    sides = {"to": "reference", "good": "response", "bad": "response"}
    for name, column in sides.items():
        rows = [
            {
                "prompt": f"p{n}",
                column: text.replace("small", "big") if name == "bad" else text,
                "direction": ("en-de", "de-en")[n % 2],
            }
            for n, text in enumerate(texts)
        ]
        made.write_lines(tmp_path / f"{name}.jsonl", rows)
    given = ["--references", "to.jsonl", "--baseline", "bad.jsonl", "--answers", "good.jsonl"]
    paths = [str(tmp_path / word) if word.endswith("jsonl") else word for word in given]
    file = tmp_path / "translation.json"
    dispatch(["eval", "translation", *paths, "--resamples", "50", "--json", str(file)])
    report = report_of(file)
    names = ["Means over directions", "en-de", "de-en"]
    assert [each.name for each in report.sections] == names
    told = words(section(report, "en-de").blocks)
    assert "6 segments." in told
    assert re.search(r"good\.jsonl 100\.00 \(100\.00 to 100\.00\) p = 0\.0", told)
    assert re.search(r"bad\.jsonl \d\d\.\d\d \(.*\) \n", told)
    assert "Signature: `nrefs:1|bs:50" in told
    assert re.search(r"good\.jsonl \| 100\.00 \| 100\.00", words(report.sections[0].blocks))


def test_a_loop_is_told_by_round_with_gains_costs_and_warnings(tmp_path: Path):
    cost = {"calls": 20, "prompt_tokens": 900, "completion_tokens": 100, "dollars": 0.5}
    rounds = [
        {
            **{"round": number, "score": score, "score_ci": [score - 0.1, score + 0.1]},
            **{"gain": 0.1, "gain_ci": [0.0, 0.2], "examples": 8, "dropped": {"identical": 2}},
            **{"warnings": ["answers grow"] if number == 2 else [], "adapter": "a"},
            **{"cost": {**cost, "seconds": 65.0}, "data": "d.jsonl", "judged": f"j{number}"},
        }
        for number, score in ((1, 0.6), (2, 0.55))
    ]
    results = {"method": "clair", "rounds": rounds, "best_round": 1, "stopped": "no gain"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (rounds_told,) = report_of(tmp_path).sections
    assert rounds_told.headline == [("round 1", "best"), ("2", "rounds")]
    told = words(rounds_told.blocks)
    assert "round 1 0.600 (0.500 to 0.700)" in told
    assert "round 1 | 8 | 2 | 20 | 1,000 | 0.50 | 1 min 5 s" in told
    assert "round 2: answers grow" in told
    assert "Stopped early: no gain." in told


def test_results_of_another_kind_show_their_plain_values(tmp_path: Path):
    (tmp_path / "results.json").write_text('{"bleu": 31.25, "n": 3, "deep": {"x": 1}}')
    assert "bleu: 31.25" in words(report_of(tmp_path).sections[0].blocks)


# ---- Quickstart, and what is no run ----


def test_a_quickstart_tells_result_answers_pairs_and_training(tmp_path: Path):
    report = report_of(made.quickstart(tmp_path / "quickstart"))
    assert [each.name for each in report.sections] == [
        *("Result", "Evaluation", "Length", "Judge", "Answers", "Pairs"),
        *("Training", "Configuration", "Time and machine"),
    ]
    result = section(report, "Result")
    assert ("50.0% \u2192 75.0%", "accuracy of sampled answers") in result.headline
    assert "judged: not done" in words(result.blocks)


def test_several_runs_in_a_folder_have_sections_of_their_own_names(tmp_path: Path):
    folder = made.quickstart(tmp_path / "quickstart")
    shutil.copytree(folder / "adapter", folder / "start")
    shutil.copytree(folder / "judged", folder / "again")
    names = [each.name for each in report_of(folder).sections]
    assert {"judged: answers", "again: answers", "Training", "start: training"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_quickstart_half_way_shows_what_there_is(tmp_path: Path):
    folder = made.quickstart(tmp_path / "quickstart")
    (folder / "results.json").unlink()
    (folder / "pairs.jsonl").unlink()
    report = report_of(folder)
    assert section(report, "Result").headline == []
    assert "is not here" in words(section(report, "Pairs").blocks)


@pytest.mark.parametrize("kind", ["training", "winrate", "quickstart"])
def test_foreign_text_anywhere_leaves_the_page_as_it_is(kind: str, tmp_path: Path):
    pages: list[str] = []
    for text in ("x" * len(HOSTILE), HOSTILE):
        run = getattr(made, kind)(tmp_path / str(len(pages)) / "run", text)
        pages.append(report_of(run).page())
    assert pages[0].count("<") == pages[1].count("<")
    assert "<script>window" not in pages[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "no such run"),
        ("folder", "", "holds no run: a training leaves metrics.jsonl"),
        ("some.json", "[1]", "holds no report, but a list"),
        ("some.json", "{", "is no JSON"),
        ("some.json", "{}", "holds no run"),
    ],
)
def test_what_is_no_run_is_one_line(name: str, content: str | None, message: str, tmp_path: Path):
    path = tmp_path / name
    if content == "":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        gather(path, 4, 0)


def test_the_command_writes_into_the_folder_or_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = made.training(tmp_path)
    dispatch(["report", str(run), "--examples", "1"])
    assert (run / "report.html").is_file()
    assert f"written to {run / 'report.html'}" in capsys.readouterr().out
    dispatch(["report", str(run), "--output", str(tmp_path / "new/page.html")])
    assert (tmp_path / "new/page.html").is_file()
    with pytest.raises(UserError, match="`examples` is 0"):
        dispatch(["report", str(run), "--examples", "0"])


@pytest.mark.parametrize(
    ("found", "told"),
    [
        *((duration(4.21), "4.2 s"), (duration(59.6), "60 s"), (duration(125), "2 min 5 s")),
        *((duration(3 * 3600 + 720), "3 h 12 min"), (size(999), "999 bytes")),
        *((size(2_500_000), "2.5 MB"), (shown(True), "yes"), (shown({"a": [1, 2]}), "a 1, 2")),
        *((shown(None), "none"), (shown([]), "none"), (shown(1234), "1,234")),
    ],
)
def test_figures_are_told_as_a_reader_wants_them(found: str, told: str):
    assert found == told
