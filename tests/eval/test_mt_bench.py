"""MT-Bench end to end with programs as policy and judge: what is asked, shown, kept, recomputed."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_messages, as_text, sections
from alignment.llm.protocol import Reply, Request
from eval.mt_bench import FIELDS, shown
from eval.questions import Question, are_official, read_answers, read_questions

ROOT = Path(__file__).parents[2]
CATEGORIES = (
    *("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
)
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81 + i, "category": category, "turns": [f"first {category}", f"then {i}"]}
    for i, category in enumerate(CATEGORIES)
]
TEMPERATURES = (0.7, 0.7, 0.0, 0.0, 0.0, 0.0, 0.1, 0.1)


def policy(request: Request) -> str:
    """Says at which temperature and turn it was asked."""
    turn = len(as_messages(request.prompt)) // 2 + 1
    return f"{as_messages(request.prompt)[-1]['content']}: {request.sampling.temperature}/{turn}"


def judge(request: Request) -> str:
    """Rates the first turn 8 and the second 4, says nothing of coding, and counts references."""
    parts = sections(as_text(request.prompt))
    if "coding" in parts["question_1"]:
        return "I cannot say."
    references = sum(name.startswith("reference") for name in parts)
    return f"{references} references seen. Rating: [[{4 if 'answer_2' in parts else 8}]]"


def hesitant(request: Request) -> str:
    """Gives a rating only when it is asked for the second time."""
    return "Rating: [[6]]" if request.sample else "Hm."


def prefers_longer(request: Request) -> str:
    parts = sections(as_text(request.prompt))
    turn = 2 if "question_2" in parts else 1
    first, second = (parts[f"{side}_answer_{turn}"] for side in "AB")
    return "Verdict: A" if len(first) >= len(second) else "Verdict: B"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(folder: Path, *argv: object, judge_model: str = "judge") -> dict[str, Any]:
    questions = write(folder / "questions.jsonl", QUESTIONS)
    command = ["eval", "mt_bench", "--questions", questions, "--output", folder / "out"]
    command += ["--resamples", 200, "--judge-model", f"program:{__name__}.{judge_model}", *argv]
    dispatch([str(word) for word in command])
    return json.loads((folder / "out" / "results.json").read_text())


def asked(*argv: object) -> tuple[object, ...]:
    return ("--model", f"program:{__name__}.policy", *argv)


def references(folder: Path) -> Path:
    rows = [
        {"question_id": row["question_id"], "choices": [{"index": 0, "turns": ["r1", "r2"]}]}
        for row in QUESTIONS
        if row["category"] in ("math", "stem")
    ]
    return write(folder / "references.jsonl", rows)


def test_answers_are_asked_for_by_category_and_turn(tmp_path: Path):
    run(tmp_path, *asked("--allow-missing"))
    rows = [row for _, row in read_rows(tmp_path / "out" / "answers.jsonl")]
    assert [row["question_id"] for row in rows] == [str(row["question_id"]) for row in QUESTIONS]
    for row, question, temperature in zip(rows, QUESTIONS, TEMPERATURES, strict=True):
        turns = question["turns"]
        assert row["turns"] == [f"{turns[0]}: {temperature}/1", f"{turns[1]}: {temperature}/2"]


def test_known_ratings_give_the_known_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Seven categories get 8 and 4; coding is not judged: 2 of 16 rows."""
    results = run(tmp_path, *asked("--allow-missing"), "--references", references(tmp_path))
    (means,) = results["models"].values()
    assert (means["turn1"], means["turn2"], means["average"]) == (8.0, 4.0, 6.0)
    assert (means["rows"], means["unjudged"]) == (16, 2)
    assert means["by_category"]["coding"] is None
    assert means["by_category"]["math"] == 6.0
    (ends,) = results["intervals"].values()
    assert ends["average"] == [6.0, 6.0]
    assert "average        6.000  95% interval [6.000, 6.000]" in capsys.readouterr().out
    assert results["judge"]["prompt"] == "mt_bench_single.txt"
    assert results["official_questions"] is False


def test_references_are_shown_in_their_categories_and_turns_alone(tmp_path: Path):
    """Maths sees one reference at its first turn and two at its second; stem sees none."""
    run(tmp_path, *asked("--allow-missing"), "--references", references(tmp_path))
    said = {
        (row["category"], row["turn"]): row["judgment"][:1]
        for _, row in read_rows(tmp_path / "out" / "verdicts.jsonl")
    }
    assert (said["math", 1], said["math", 2], said["stem", 2]) == ("1", "2", "0")


def test_an_unreadable_rating_is_asked_for_again(tmp_path: Path):
    results = run(tmp_path, *asked(), judge_model="hesitant")
    (means,) = results["models"].values()
    assert (means["average"], means["unjudged"]) == (6.0, 0)


def test_too_few_ratings_are_refused_and_the_verdicts_kept(tmp_path: Path):
    with pytest.raises(UserError, match="only 14 of 16 rows"):
        run(tmp_path, *asked())
    assert len(list(read_rows(tmp_path / "out" / "verdicts.jsonl"))) == 16


def test_a_bundle_gives_the_same_numbers_without_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = run(tmp_path, *asked("--allow-missing"))
    for ledger in (tmp_path / "out").glob("*.ledger*"):
        ledger.unlink()
    (tmp_path / "out" / "results.json").unlink()
    told = capsys.readouterr().out
    again = ["eval", "mt_bench", "--bundle", str(tmp_path / "out"), "--allow-missing"]
    dispatch(again)
    assert capsys.readouterr().out == told
    dispatch([*again, "--json", "-"])
    assert json.loads(capsys.readouterr().out) == {"models": results["models"]}


def test_verdicts_are_judgments_that_can_be_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = run(tmp_path, *asked("--allow-missing"))
    capsys.readouterr()
    verdicts = str(tmp_path / "out" / "verdicts.jsonl")
    command = ["eval", "mt_bench", "--judgments", verdicts, "--allow-missing"]
    dispatch([*command, "--json", str(tmp_path / "means.json")])
    assert json.loads((tmp_path / "means.json").read_text())["models"] == results["models"]


def answers(folder: Path, **models: str) -> Path:
    rows = [
        {"question_id": row["question_id"], "model_id": model, "choices": [{"turns": [said, said]}]}
        for model, said in models.items()
        for row in QUESTIONS
    ]
    return write(folder / "given.jsonl", rows)


def test_pairs_are_judged_in_both_orders_and_won_by_both(tmp_path: Path):
    """`long` beats the baseline, `same` is it word for word, `equal` wins wherever it is first."""
    given = answers(tmp_path, base="abc", long="abcdef", same="abc", equal="xyz")
    results = run(
        *(tmp_path, "--answers", given, "--grading", "pair", "--baseline", "base"),
        judge_model="prefers_longer",
    )
    models = results["models"]
    assert {name: means["average"] for name, means in models.items()} == {
        "long": 1.0,
        "same": 0.5,
        "equal": 0.5,
    }
    assert (models["long"]["wins"], models["equal"]["ties"]) == (16, 16)
    rows = [row for _, row in read_rows(tmp_path / "out" / "verdicts.jsonl")]
    assert {row["model"]: len(row["votes"]) for row in rows} == {"long": 2, "same": 0, "equal": 2}


def test_an_answer_that_is_missing_is_unjudged(tmp_path: Path):
    given = answers(tmp_path, m="abc")
    lines = given.read_text().splitlines()[1:]
    given.write_text("\n".join(lines) + "\n")
    results = run(tmp_path, "--answers", given, "--allow-missing", judge_model="hesitant")
    assert results["models"]["m"]["unjudged"] == 2
    faults = [row["fault"] for _, row in read_rows(tmp_path / "out" / "verdicts.jsonl")]
    assert faults.count("no answer") == 2


def test_a_constant_answer_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    given = answers(tmp_path, m="I am the best answer.")
    results = run(tmp_path, "--answers", given, judge_model="hesitant")
    assert results["repeated"]["m"]["repeated_share"] == 1.0
    assert "m gives near-identical answers to 100%" in caplog.text


def test_what_comes_later_is_not_shown():
    question = Question("1", "math", ("q1", "q2"), ("r1", "r2"))
    first = shown(question, 1, answer=("a1", "a2"))
    assert first["question_2"] == first["answer_2"] == first["reference_2"] == ""
    assert shown(question, 2, answer=("a1", "a2"))["answer_2"] == "a2"
    assert first.keys() == FIELDS["single"]


def test_the_real_questions_and_answers_can_be_read(shared_dir: Path):
    """All 30 questions of reasoning, maths and coding have references, no other has."""
    folder = shared_dir / "data/mt_bench"
    questions = read_questions(folder / "questions.jsonl.gz", folder / "reference_answers.jsonl.gz")
    assert (len(questions), sum(bool(each.reference) for each in questions)) == (80, 30)
    assert are_official(questions)
    assert not are_official(questions[1:])
    given = read_answers([folder / "answers.jsonl.gz"], questions)
    assert {model: len(said) for model, said in given.items()} == dict.fromkeys(given, 80)
    assert len(given) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": 999}, "no question 999 among the questions"),
        ({"turns": ["one"]}, "`turns` must be two texts"),
        ({"model": None}, "the answer has no `model`"),
        ({"question_id": None}, "there is no `question_id`"),
    ],
)
def test_an_answer_that_does_not_fit_is_named(tmp_path: Path, change: dict, message: str):
    rows = [{"question_id": 81, "model": "m", "turns": ["a", "b"], **change}]
    with pytest.raises(UserError, match=rf"given\.jsonl:1: .*{message}"):
        run(tmp_path, "--answers", write(tmp_path / "given.jsonl", rows))


@pytest.mark.parametrize("reference", ["42 apples", ["42 apples"], ["a", None], {"turns": ["a"]}])
def test_a_reference_that_does_not_fit_is_named(tmp_path: Path, reference: object):
    rows = [{"question_id": 1, "category": "math", "turns": ["a", "b"], "reference": reference}]
    path = write(tmp_path / "questions.jsonl", rows)
    with pytest.raises(UserError, match=r"questions\.jsonl:1: `reference` must be a list of two"):
        read_questions(path)


@pytest.mark.parametrize("reference", [None, []])
def test_a_question_may_have_no_reference(tmp_path: Path, reference: object):
    rows = [{"question_id": 1, "category": "math", "turns": ["a", "b"], "reference": reference}]
    (question,) = read_questions(write(tmp_path / "questions.jsonl", rows))
    assert question.reference == ()


def test_a_doubled_answer_is_named(tmp_path: Path):
    row = {"question_id": 81, "model": "m", "turns": ["a", "b"]}
    with pytest.raises(UserError, match=r"given\.jsonl:2: m answers question 81 twice"):
        run(tmp_path, "--answers", write(tmp_path / "given.jsonl", [row, row]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one of `--judgments FILE`"),
        (["--output", "out"], "`--questions` is needed"),
        (["--output", "out", "--questions", "q"], "give `--model` to be asked or `--answers`"),
        (["--judgments", "j", "--bundle", "b"], "give one of `--judgments FILE`"),
        (["--judgments", "j", "--grading", "pair"], "`--baseline MODEL` go together"),
    ],
)
def test_options_that_contradict_each_other_are_told(argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        dispatch(["eval", "mt_bench", *argv])


def test_a_reward_model_is_no_judge_of_turns(tmp_path: Path):
    given = ("--answers", answers(tmp_path, m="a"), "--judge", "reward")
    with pytest.raises(UserError, match=r"`verdict: reward`; give .* is rating$"):
        run(tmp_path, *given)
    with pytest.raises(UserError, match=r"`verdict: reward`; give .* is letter or tokens$"):
        run(tmp_path, *given, "--grading", "pair", "--baseline", "m")


def test_a_baseline_without_answers_is_told_with_the_models(tmp_path: Path):
    given = answers(tmp_path, m="abc")
    with pytest.raises(UserError, match="no pair with `--baseline base`; the models are m"):
        run(tmp_path, "--answers", given, "--grading", "pair", "--baseline", "base")


def test_a_judge_that_fails_is_asked_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = answers(tmp_path, m="abc")
    asked_for: list[int] = []

    def broken(request: Request) -> Reply:
        asked_for.append(request.sample)
        return Reply("", "error") if len(asked_for) <= 16 * 2 else Reply("[[9]]")

    monkeypatch.setitem(globals(), "broken", broken)
    failing = run(
        *(tmp_path, "--answers", given, "--allow-missing", "--attempts", 1), judge_model="broken"
    )
    assert failing["models"]["m"]["unjudged"] == 16
    again = run(*(tmp_path, "--answers", given, "--resume", "--attempts", 8), judge_model="broken")
    assert (again["models"]["m"]["average"], again["models"]["m"]["unjudged"]) == (9.0, 0)
