"""Judgments for CUT: layouts of critiques, the agreed word, downsampling, published rounds."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError, parse
from alignment.core.groups import group_from_row
from alignment.core.rows import read_rows
from alignment.llm.program import FakeLLM
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import CallError, Request
from alignment.llm.rows import Reject, Row
from data_builders.judgments import Options, Quota, builder, read_record, read_verdict, records
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.running import build, reasons, report, write
from tests.llm.real_server import running, save_parrot
from tests.llm.server import Answer, Body, last_words

WORD = "FLAWLESS"


@pytest.mark.parametrize(
    "reply", ["FLAWLESS", "Flawless.", " **FLAWLESS**", "flawless: nothing to add", '"FLAWLESS"']
)
def test_a_reply_that_begins_with_the_agreed_word_finds_no_fault(reply: str):
    assert read_verdict(reply, WORD) is None


@pytest.mark.parametrize(
    "reply",
    ["The sum is wrong.", "It is not FLAWLESS.", "FLAWLESSLY written, but false.", "I cannot say."],
)
def test_any_other_reply_is_the_judgment_in_full(reply: str):
    assert read_verdict(f"\n{reply}\n", WORD) == reply


def test_a_judge_that_says_nothing_is_no_praise():
    with pytest.raises(Reject) as caught:
        read_verdict(" \n", WORD)
    assert caught.value.reason == "empty"


def test_the_agreed_word_is_taken_as_it_is_written():
    assert read_verdict("n/a", "N/A") is None
    assert read_verdict("nothing", "n.t") == "nothing"


def test_a_question_with_feedback_is_a_judged_answer():
    record = read_record({"question": "2+2?", "answer": "5", "feedback": "It is 4.", "id": 3})
    assert record == ("2+2?", "5", "It is 4.", None)


def critiqued(*answers: dict[str, Any], rankings: list[int]) -> dict[str, Any]:
    question = {"question": "What happens?", "rankings": rankings, "answers": list(answers)}
    return {"data": {"passage": {"text": "A story."}, "questions": [question]}}


def criticised(
    answer: str, *texts: str, refinement: str | None = "better", **more: Any
) -> dict[str, Any]:
    critiques = [{"text": text, "refinement": refinement} for text in texts]
    return {"answer": answer, "feedback": {"rating": 3, "critiques": critiques, **more}}


def taken_apart(*rows: dict[str, Any]) -> list[Any]:
    return [read_record(row) for _, row in records(iter([("f:1", row) for row in rows]))]


def test_of_a_summary_the_answer_ranked_highest_counts_and_its_critiques_are_joined():
    low, high = criticised("bad", "ignored"), criticised("good", " It omits the end. ", "Too long.")
    (record,) = taken_apart(critiqued(low, high, rankings=[1, 2]))
    assert record.prompt == "A story.\n\nWhat happens?"
    assert (record.response, record.judgment) == ("good", "It omits the end. Too long.")


def test_a_summary_without_critiques_has_no_fault():
    (record,) = taken_apart(critiqued(criticised("fine"), rankings=[1]))
    assert record.judgment is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (criticised("a", "wrong", refinement=""), "no_refinement"),
        (criticised("a", "wrong", skip=True), "skipped"),
        (criticised("a", "wrong", refinement=None), "no_refinement"),
        (criticised("", "wrong"), "no_response"),
        ({"answer": "a"}, "bad_type"),
    ],
)
def test_a_summary_that_cannot_be_used_says_why(answer: dict[str, Any], reason: str):
    with pytest.raises(Reject) as caught:
        taken_apart(critiqued(answer, rankings=[1]))
    assert caught.value.reason == reason


def test_questions_that_are_none_are_a_row_without_a_judgment():
    for questions in (None, "what", ["what"]):
        with pytest.raises(Reject) as caught:
            taken_apart({"data": {"questions": questions}})
        assert caught.value.reason == "no_judgment"


def test_each_question_about_a_passage_is_a_row_with_a_name():
    row = critiqued(criticised("a"), rankings=[1])
    row["data"]["questions"] *= 2
    names = [name for name, _ in records(iter([("f:1", row), ("f:2", {"prompt": "p"})]))]
    assert names == ["f:1, question 0", "f:1, question 1", "f:2"]


@pytest.mark.parametrize(
    ("negatives", "ratio", "kept"),
    [(240, 0.25, 60), (242, 0.25, 60), (7, 0.25, 1), (3, 0.25, 0), (100, 0.29, 29)],
)
def test_positives_are_kept_up_to_a_share_of_the_negatives(negatives: int, ratio: float, kept: int):
    """floor(ratio * negatives); 0.29 * 100 is 28.999... in floating point and 29 in fact."""
    keys = [f"{i}" for i in range(500)] + [None] * negatives
    assert Quota(keys, ratio, 0).left.total() == kept


def test_which_positives_are_kept_is_drawn_by_the_seed_and_not_by_the_order():
    keys: list[str | None] = [f"{i}" for i in range(40)] + [None] * 40
    drawn = Quota(keys, 0.25, 0).left
    assert drawn == Quota(keys[::-1], 0.25, 0).left
    assert drawn != Quota(keys, 0.25, 1).left
    assert drawn != Counter(f"{i}" for i in range(10))


def test_like_rows_share_their_places():
    quota = Quota(["same"] * 9 + [None] * 8, 0.25, 0)
    quota.take("same")
    quota.take("same")
    with pytest.raises(Reject, match="--positives-per-negative"):
        quota.take("same")


def test_a_row_whose_look_got_no_answer_is_rejected_as_such(tmp_path: Path):
    """The judge fails once at the last row, while all are looked at for the first without fault."""
    rows = [{"prompt": f"task {i}", "response": "x"} for i in (0, 2, 4, 6, 1, 3)]
    words = ["--input", str(write(tmp_path / "in.jsonl", rows)), "--output", "out.jsonl", *ASK]
    make = builder(parse(Options, words, "alignment build judgments"))
    failed = False

    def failing_once(request: Request) -> str:
        nonlocal failed
        if not failed and sections(as_text(request.prompt))["task"] == "task 3":
            failed = True
            raise CallError("failed", "the connection broke")
        return judge(request)

    async def in_turn() -> None:
        llm = FakeLLM(failing_once)
        await make(rows[4], llm)
        assert failed
        with pytest.raises(Reject, match="all rows were looked at; run the same command") as told:
            await make(rows[5], llm)
        assert told.value.reason == "unsurveyed"

    asyncio.run(in_turn())


def test_where_all_are_kept_nobody_looks_at_all_rows():
    words = ["--input", "nowhere.jsonl", "--output", "out.jsonl"]
    null = ["--positives-per-negative", "null"]
    make = builder(parse(Options, [*words, *null], "alignment build judgments"))

    async def made() -> Row:
        return cast(Row, await make({"instruction": "a", "output": "b", "judgment": None}))

    assert asyncio.run(made())["judgment"] is None


def policy(request: Request) -> str:
    return f"{as_text(request.prompt)} done"


def judge(request: Request) -> str:
    return verdict_of(sections(as_text(request.prompt)))


def verdict_of(shown: dict[str, str]) -> str:
    if "silence" in shown["task"]:
        return ""
    if "broken" in shown["task"]:
        return "$ERROR$"
    return WORD if int(shown["task"].split()[-1]) % 2 else f"Wrong about {shown['task']}."


def run(folder: Path, rows: Sequence[Row], *words: str) -> list[dict[str, Any]]:
    return build(folder, "judgments", rows, *words)


ASK = ("--judge-model", f"program:{__name__}.judge")
ANSWER = (*ASK, "--model", f"program:{__name__}.policy")


def test_a_policy_answers_and_a_judge_finds_faults(tmp_path: Path):
    made = run(tmp_path, [{"prompt": f"task {i}"} for i in range(16)], *ANSWER)
    wrong = [row for row in made if row["judgment"]]
    assert len(wrong) == 8
    assert len(made) == 10
    assert wrong[0]["instruction"] == "task 0"
    assert wrong[0]["output"] == "task 0 done"
    assert wrong[0]["judgment"] == "Wrong about task 0."
    meta = wrong[0]["meta"]
    assert (meta["builder"], meta["category"]) == ("judgments", "align_n")
    assert meta["on_policy"] == {"response": True}
    assert meta["models"]["judge"] == f"program:{__name__}.judge"
    assert sections(meta["generation_prompt"]) == {"task": "task 0", "answer": "task 0 done"}
    assert meta["sampling"]["response"]["seed"] == 0
    assert Counter(reasons(tmp_path)) == {"downsampled": 6}


def test_answers_that_are_there_are_judged_as_they_are(tmp_path: Path):
    rows = [{"prompt": "task 0", "response": "no", "model": "small"}]
    (made,) = run(tmp_path, rows, *ANSWER)
    assert made["output"] == "no"
    assert made["meta"]["models"]["response"] == "small"
    assert made["meta"]["on_policy"] == {"response": False}


def test_messages_stay_messages(tmp_path: Path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "task 0"}]
    (made,) = run(tmp_path, [{"prompt": prompt}], *ANSWER)
    assert made["prompt"] == prompt
    assert made["completion"][0]["role"] == "assistant"
    plain, judged = group_from_row(made).responses
    assert plain.content == judged.content
    assert judged.prompt is not None
    assert judged.prompt[0] == prompt[0]


def test_every_row_is_kept_or_rejected_by_name(tmp_path: Path):
    rows: list[Row] = [
        {"instruction": "a", "output": "b", "judgment": "Wrong."},
        {"instruction": "a", "output": "b", "judgment": "$ERROR$"},
        {"instruction": "a", "output": "b", "judgment": "[Error]"},
        {"instruction": "a", "output": "b", "judgment": 3},
        {"instruction": "a", "output": "", "judgment": "Wrong."},
        {"instruction": "a", "output": "b", "judgment": "Wrong.", "finish_reason": "length"},
        {"instruction": "a", "output": "b", "judgment": None},
        {"instruction": "a", "output": "b"},
    ]
    assert len(run(tmp_path, rows)) == 1
    assert reasons(tmp_path) == [
        *("judgment_error", "judgment_error", "bad_type", "no_output", "truncated"),
        *("downsampled", "no_judgment"),
    ]
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)


def test_a_judges_silence_and_its_placeholders_are_no_judgments(tmp_path: Path):
    rows = [{"prompt": p, "response": "x"} for p in ("task 0", "silence 0", "broken 0")]
    assert len(run(tmp_path, rows, *ASK)) == 1
    assert reasons(tmp_path) == ["empty", "judgment_error"]


def test_both_views_of_a_judged_row_hold_the_same_response(tmp_path: Path):
    for row in run(tmp_path, [{"question": "q", "answer": "a", "feedback": "No."}]):
        plain, judged = group_from_row(row).responses
        assert plain.content == judged.content
        assert judged.twin == 0


def test_a_run_is_the_same_twice_byte_for_byte(tmp_path: Path):
    rows = [{"prompt": f"task {i}"} for i in range(30)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, rows, *ANSWER)
    first, second = ((tmp_path / name / "out.jsonl").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_missing_column_names_the_nearest(tmp_path: Path):
    rows = [{"instruction": "a", "output": "b", "judgement": "Wrong."}]
    with pytest.raises(UserError, match=r"no column `judgment`.*did you mean `judgement`\?"):
        run(tmp_path, rows)


def test_praise_alone_is_an_empty_result_that_says_how_to_keep_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"downsampled \(1 rows\).*null keeps all"):
        run(tmp_path, [{"instruction": "a", "output": "b", "judgment": None}])
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "m"], "name the judge"),
        (["--positives-per-negative", "-1"], "a number from 0 up"),
        (["--positives-per-negative", "inf"], "a number from 0 up"),
        (["--positives-per-negative", "nan"], "a number from 0 up"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], told: str):
    with pytest.raises(UserError, match=told):
        parse(Options, ["--input", "a", "--output", "b.jsonl", *words], "alignment build judgments")


@pytest.mark.parametrize(
    ("name", "negatives", "errors"), [("cut_iter1", 240, 47), ("cut_iter3", 242, 0)]
)
def test_published_rounds_are_read_and_downsampled(
    shared_dir: Path, tmp_path: Path, name: str, negatives: int, errors: int
):
    source = shared_dir / "data" / "judgments" / f"{name}.jsonl.gz"
    if not source.is_file():
        pytest.skip(f"no {source.name} among the shared files")
    words = ["build", "judgments", "--input", str(source)]
    dispatch([*words, "--output", str(tmp_path / "all.jsonl"), "--positives-per-negative", "null"])
    made = Counter(row["judgment"] is None for _, row in read_rows(tmp_path / "all.jsonl"))
    assert made == {True: 1000 - negatives - errors, False: negatives}
    dispatch([*words, "--output", str(tmp_path / "out.jsonl")])
    made = Counter(row["judgment"] is None for _, row in read_rows(tmp_path / "out.jsonl"))
    assert made == {True: math.floor(negatives / 4), False: negatives}
    dropped = Counter(reasons(tmp_path))
    assert dropped["judgment_error"] == errors
    assert made.total() + dropped.total() == 1000


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        shown = sections(last_words(body))
        return Answer(verdict_of(shown) if shown else f"{last_words(body)} done")

    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"task {i}"} for i in range(30)])
    words = ("build", "judgments", "--input", source, "--judge-model", "j", "--judge-url", "{url}")
    made = survives_a_kill(tmp_path, script, *words, models=2)
    assert Counter(row["judgment"] is None for row in made) == {False: 15, True: 3}


@pytest.mark.slow
def test_a_real_server_answers_and_judges_and_cut_trains_on_it(tmp_path: Path):
    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"task {i}"} for i in range(20)])
    with running(save_parrot(tmp_path / "parrot", "It is wrong.")) as served:
        words = ("build", "judgments", "--input", source, "--max-tokens", "8")
        judge_words = ("--judge-model", "{model}", "--judge-url", "{url}")
        made = builds_on(served, tmp_path, *words, *judge_words)
    assert {row["judgment"] for row in made} == {"It is wrong."}
    assert len(made) == 20
    trains(tmp_path, tmp_path / "out.jsonl", "cut")
