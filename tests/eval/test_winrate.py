"""Known verdicts, known report; and files, judges and servers that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError, parse
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Reply, Request
from eval.winrate import Options
from tests.llm.server import Answer, Body, last_words, serve
from tests.llm.shards_here import run_shards_here


def judge(request: Request) -> str:
    """Prefers the longer answer; ties at equal length; gives prose where an answer asks for it."""
    return verdict(as_text(request.prompt))


def verdict(text: str) -> str:
    first, second = (sections(text)[name] for name in ("answer_A", "answer_B"))
    if "prose" in (first, second):
        return "They are both fine answers."
    if len(first) == len(second):
        return "Verdict: tie"
    return "Verdict: A" if len(first) > len(second) else "Verdict: B"


def write(path: Path, answers: dict[str, Any] | list[tuple[Any, Any]]) -> Path:
    items = answers.items() if isinstance(answers, dict) else answers
    rows = [{"prompt": prompt, "response": response} for prompt, response in items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(
    folder: Path, answers: Any, baseline: Any, *argv: str, judge_model: str | None = None
) -> dict[str, Any]:
    mine = write(folder / "answers.jsonl", answers)
    theirs = write(folder / "baseline.jsonl", baseline)
    command = ["eval", "winrate", "--answers", str(mine), "--baseline", str(theirs)]
    command += ["--output", str(folder / "out"), "--resamples", "200"]
    command += ["--judge-model", judge_model or f"program:{__name__}.judge", *argv]
    dispatch(command)
    return json.loads((folder / "out" / "results.json").read_text())


ANSWERS = {"p1": "longer", "p2": "b", "p3": "same", "p4": "equal"}
BASELINE = {"p2": "longer", "p1": "a", "p4": "other", "p3": "same"}


def test_known_verdicts_give_the_known_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """p1 wins, p2 loses, p3 is identical, p4 ties: (1 + 0 + .5 + .5) / 4 = .5."""
    results = run(tmp_path, ANSWERS, BASELINE)
    assert results["win_rate"] == 0.5
    assert results["win_rate_ci"][0] <= 0.5 <= results["win_rate_ci"][1]
    assert [results[name] for name in ("n_prompts", "wins", "losses", "ties", "identical")] == [
        *(4, 1, 1, 2, 1)
    ]
    assert (results["unjudged"], results["position_consistency"]) == (0, 1.0)
    assert results["judge"]["model"] == f"program:{__name__}.judge"
    assert "win rate 0.500, 95% interval [" in capsys.readouterr().out


def first(request: Request) -> str:
    """Prefers whatever it is shown first."""
    return "Verdict: A"


@pytest.mark.parametrize(("program", "warned"), [("judge", False), ("first", True)])
def test_a_judge_that_goes_by_the_order_is_told(
    program: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path, ANSWERS, BASELINE, judge_model=f"program:{__name__}.{program}")
    assert ("goes by the order of the answers" in capsys.readouterr().out) == warned


def test_the_report_is_json_alone_where_that_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = run(tmp_path, ANSWERS, BASELINE, "--json", "-")
    assert json.loads(capsys.readouterr().out) == results


def test_every_verdict_is_kept_with_the_judges_words(tmp_path: Path):
    run(tmp_path, ANSWERS, BASELINE)
    rows = {row["prompt"]: row for _, row in read_rows(tmp_path / "out" / "verdicts.jsonl")}
    assert list(rows) == ["p1", "p2", "p3", "p4"]
    assert [vote["text"] for vote in rows["p1"]["votes"]] == ["Verdict: A", "Verdict: B"]
    assert (rows["p1"]["score"], rows["p3"]["votes"]) == (1.0, [])


def test_several_answers_to_a_prompt_count_as_one_prompt(tmp_path: Path):
    """p: a win and a loss, mean .5; q: a win. (.5 + 1) / 2."""
    results = run(
        tmp_path,
        [("p", "longer"), ("q", "longer"), ("p", "a")],
        [("q", "a"), ("p", "a"), ("p", "longer")],
    )
    assert (results["win_rate"], results["n_prompts"], results["n_comparisons"]) == (0.75, 2, 3)


def test_messages_and_text_are_the_same_prompt(tmp_path: Path):
    results = run(tmp_path, [([{"role": "user", "content": "p"}], "longer")], {"p": "a"})
    assert results["win_rate"] == 1.0


@pytest.mark.parametrize(
    ("answers", "baseline", "message"),
    [
        ({"p": "a", "q": "b"}, {"p": "a"}, "1 of 2 stand in `answers` alone, the first is `q`"),
        ({"p": "a"}, {"p": "a", "r": "b"}, "1 of 2 stand in `baseline` alone, the first is `r`"),
        ([("p", "a"), ("p", "b")], {"p": "a"}, "`p` has 2 answers and 1 baseline answers"),
        ({}, {"p": "a"}, "the file holds no answers"),
    ],
)
def test_answers_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, answers: Any, baseline: Any, message: str
):
    with pytest.raises(UserError) as caught:
        run(tmp_path, answers, baseline)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_answer_is_judged_and_loses(tmp_path: Path):
    assert run(tmp_path, {"p": ""}, {"p": "a"})["losses"] == 1


def test_unreadable_verdicts_are_counted_and_too_many_are_refused(tmp_path: Path):
    answers = {f"p{i}": "longer" for i in range(9)} | {"p9": "prose"}
    baseline = {f"p{i}": "a" for i in range(10)}
    with pytest.raises(UserError, match=r"only 9 of 10 prompts .*\(2 unparseable\).*allow-missing"):
        run(tmp_path, answers, baseline)
    assert len(list(read_rows(tmp_path / "out" / "verdicts.jsonl"))) == 10
    results = run(tmp_path, answers, baseline, "--allow-missing", "--resume")
    assert (results["win_rate"], results["n_prompts"], results["unjudged"]) == (1.0, 9, 1)
    assert results["unreadable_verdicts"] == 2


def test_a_judge_that_returns_prose_is_told_with_its_words(tmp_path: Path):
    with pytest.raises(UserError, match="unparseable: `They are both fine answers"):
        run(tmp_path, {"p": "prose"}, {"p": "a"})


def test_results_that_exist_are_refused_until_a_flag_allows_it(tmp_path: Path):
    run(tmp_path, ANSWERS, BASELINE)
    with pytest.raises(UserError, match=r"verdicts\.jsonl exists; pass `--resume`"):
        run(tmp_path, ANSWERS, BASELINE)
    assert run(tmp_path, ANSWERS, BASELINE, "--overwrite")["win_rate"] == 0.5


def test_a_judge_behind_a_server_is_asked_once_per_order(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        if index == 3:
            return Answer(status=400, error={"error": {"message": "context is too long"}})
        return Answer(verdict(last_words(body)))

    answers = {f"p{i}": "longer" for i in range(30)}
    baseline = {f"p{i}": "a" for i in range(30)}
    with serve(script) as server:
        options = ("--judge-url", server.url, "--concurrency", "4")
        first = run(tmp_path, answers, baseline, *options, judge_model="tiny")
        assert (first["unjudged"], first["faults"]) == (1, {"failed": 1})
        assert len(server.bodies) == 60
        again = run(tmp_path, answers, baseline, *options, "--resume", judge_model="tiny")
        assert (again["unjudged"], again["win_rate"]) == (0, 1.0)
        assert len(server.bodies) == 61


def test_a_judge_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="is the server running"):
        run(tmp_path, ANSWERS, BASELINE, "--judge-url", "http://127.0.0.1:9/v1", judge_model="tiny")


def test_the_recipe_is_one_of_this_evaluator():
    path = Path(__file__).parents[2] / "recipes" / "winrate" / "eval.yaml"
    options = parse(Options, ["--config", str(path)], "alignment eval winrate")
    assert options.output == Path("runs/winrate/judged")


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"no program `no_such_module\.judge`"):
        run(tmp_path, ANSWERS, BASELINE, judge_model="program:no_such_module.judge")


# ---- Answers that are asked for ----


def eager(request: Request) -> Reply:
    """Cut off, which is an answer as well."""
    return Reply(f"longer {request.sample}", finish_reason="length")


def terse(request: Request) -> str:
    return "a" if as_text(request.prompt) != "p3" else "longer 0"


def ask(folder: Path, *argv: str) -> dict[str, Any]:
    prompts = folder / "prompts.jsonl"
    rows = ({"prompt": prompt} for prompt in ("p1", "p2", "p3", "p2"))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "winrate", "--prompts", str(prompts), "--output", str(folder / "out")]
    command += ["--model", f"program:{__name__}.eager", "--resamples", "200"]
    command += ["--judge-model", f"program:{__name__}.judge"]
    dispatch([*command, *argv])
    return json.loads((folder / "out" / "results.json").read_text())


def test_models_are_asked_for_answers_and_compared(tmp_path: Path):
    """Of three prompts p1 and p2 (twice) are won, p3 is identical: (1 + 1 + .5) / 3."""
    results = ask(tmp_path, "--baseline-model", f"program:{__name__}.terse")
    assert results["win_rate"] == pytest.approx(2.5 / 3)
    made = [row for _, row in read_rows(tmp_path / "out" / "answers.jsonl")]
    assert [(row["prompt"], row["response"]) for row in made] == [
        *(("p1", "longer 0"), ("p2", "longer 0"), ("p3", "longer 0"), ("p2", "longer 1"))
    ]
    assert made[0]["sampling"] == {"temperature": 0.7, "max_tokens": 2048, "seed": 0}


def test_what_was_asked_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = ask(tmp_path, "--baseline-model", f"program:{__name__}.terse")
    monkeypatch.setattr(f"{__name__}.eager", lambda _: pytest.fail("asked again"))
    again = ask(tmp_path, "--baseline-model", f"program:{__name__}.terse", "--resume")
    assert again == first


def going_on(request: Request) -> str:
    return f"{request.verb} until {' '.join(request.sampling.stop)}"


def test_a_text_may_be_gone_on_with_up_to_a_stop(tmp_path: Path):
    base = ("--baseline-model", f"program:{__name__}.going_on")
    ask(tmp_path, *base, "--format", "complete", "--stop", "Human:")
    made = [row for _, row in read_rows(tmp_path / "out" / "baseline.jsonl")]
    assert {row["response"] for row in made} == {"complete until Human:"}


def test_a_model_may_meet_a_file(tmp_path: Path):
    before = write(tmp_path / "before.jsonl", [(p, "a") for p in ("p1", "p2", "p2", "p3")])
    assert ask(tmp_path, "--baseline", str(before))["win_rate"] == 1.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "m", "--baseline-model", "n", "--output", "o"], "`--prompts` is needed"),
        (["--model", "m", "--output", "o"], "`--baseline-model`"),
        (["--model", "m", "--answers", "a"], "not both"),
        (["--baseline-model", "m", "--baseline", "a"], "give `--baseline-model` to be asked or"),
        (["--model", "m", "--bundle", "b"], "leave out"),
    ],
)
def test_answers_come_from_files_or_from_models(argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        parse(Options, argv, "alignment eval winrate")


def refusing(request: Request) -> Reply:
    """Refuses every draw of p3, and the second one of p2."""
    prompt = as_text(request.prompt)
    if prompt == "p3" or (prompt, request.sample) == ("p2", 1):
        return Reply("I will not.", "content_filter")
    return Reply("longer")


def test_a_prompt_that_a_model_refuses_is_unjudged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """p1 is won; p3 has no answer, and p2 one too few."""
    models = ["--baseline-model", f"program:{__name__}.terse"]
    models += ["--model", f"program:{__name__}.refusing"]
    rejects = tmp_path / "out" / "answers.jsonl.rejects.jsonl"
    with pytest.raises(UserError, match=r"only 1 of 3 .*\(2 without an answer\)") as caught:
        ask(tmp_path, *models)
    assert f"{rejects}, or pass `--allow-missing --resume`" in str(caught.value)
    made = ask(tmp_path, *models, "--resume", "--allow-missing")
    counts = ("win_rate", "n_prompts", "unjudged", "unanswered", "unreadable_verdicts")
    assert [made[name] for name in counts] == [1.0, 1, 2, 2, 0]
    assert made["rejects"] == [str(rejects)]
    assert "2 unjudged (2 without an answer)" in capsys.readouterr().out
    dispatch(["eval", "winrate", "--bundle", str(tmp_path / "out"), "--allow-missing"])
    assert "2 unjudged (2 without an answer)" in capsys.readouterr().out


def reject(path: Path, *prompts: str) -> None:
    """The rejects that a model which refused these prompts leaves beside its answers."""
    rows = [
        {"source": "p:1", "reason": "refused", "message": "m refused", "row": {"prompt": prompt}}
        for prompt in (*prompts, None)
    ]
    rejects = path.with_name(f"{path.name}.rejects.jsonl")
    rejects.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rejects_beside_files_of_answers_count_on_both_sides(tmp_path: Path):
    """Of 40 prompts p0 lacks an answer, and p1 both."""
    reject(tmp_path / "answers.jsonl", "p0", "p1")
    reject(tmp_path / "baseline.jsonl", "p1")
    prompts = [f"p{i}" for i in range(40)]
    made = run(
        tmp_path, dict.fromkeys(prompts[2:], "longer"), dict.fromkeys(["p0", *prompts[2:]], "a")
    )
    assert [made[name] for name in ("n_prompts", "unjudged", "unanswered")] == [38, 2, 2]


def test_rejects_excuse_the_side_alone_that_they_stand_beside(tmp_path: Path):
    reject(tmp_path / "answers.jsonl", "q")
    with pytest.raises(UserError, match="`q`, which neither") as caught:
        run(tmp_path, {"p": "a", "q": "b"}, {"p": "a"})
    assert f"{tmp_path / 'baseline.jsonl'}.rejects.jsonl" in str(caught.value)


def test_models_that_answer_no_prompt_in_common_are_told(tmp_path: Path):
    reject(tmp_path / "answers.jsonl", "q")
    reject(tmp_path / "baseline.jsonl", "p")
    with pytest.raises(UserError, match=r"no prompt has an answer of both; see .*rejects\.jsonl"):
        run(tmp_path, {"p": "a"}, {"q": "a"})


def policy(request: Request) -> str:
    return "longer" if "1" in as_text(request.prompt) else "b"


def other(request: Request) -> str:
    return "mid"


def test_on_a_cluster_answers_and_verdicts_come_from_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three jobs: the answers of the model, those of the baseline, and the verdicts."""
    commands = run_shards_here(monkeypatch)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(12)))
    words = ["eval", "winrate", "--prompts", str(prompts), "--resamples", "200"]
    for role, name in (("model", "policy"), ("baseline-model", "other"), ("judge-model", "judge")):
        words += [f"--{role}", f"program:{__name__}.{name}"]
    for folder, more in (("one", []), ("ray", ["--engine", "ray", "--shards", "3"])):
        dispatch([*words, "--output", str(tmp_path / folder), *more])
    assert len(commands) == 9
    for file in ("answers.jsonl", "baseline.jsonl", "verdicts.jsonl"):
        made, expected = (tmp_path / folder / file for folder in ("ray", "one"))
        assert made.read_bytes() == expected.read_bytes()
    told = [json.loads((tmp_path / f / "results.json").read_text()) for f in ("one", "ray")]
    assert told[0]["win_rate"] == told[1]["win_rate"] == pytest.approx(3 / 12)
    assert not list(tmp_path.glob("ray/*.shards"))
