"""Teacher-student pairs: joined on the prompt, drawn anew each epoch, never from a third model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.core.groups import CHOSEN, group_from_row
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Reply, Request
from alignment.llm.rows import Row
from data_builders.distill_pairs import Options
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.running import build, reasons, report, write
from tests.llm.real_server import running, save_parrot
from tests.llm.server import Answer, Body, last_words

HERE = f"program:{__name__}"
NAMES = ("--model", f"{HERE}.student", "--teacher-model", f"{HERE}.teacher")
PROMPTS: list[Row] = [{"prompt": f"p{i}"} for i in range(5)]


def run(folder: Path, rows: Sequence[Row], *words: object) -> list[dict[str, Any]]:
    return build(folder, "distill_pairs", rows, *NAMES, *words)


def teacher(request: Request) -> str | Reply:
    if "long" in as_text(request.prompt):
        return Reply("on and on", "length")
    return f"{as_text(request.prompt)}, well said {request.draw()}"


def student(request: Request) -> str:
    return "" if "silent" in as_text(request.prompt) else f"said {request.draw()}"


def answers(path: Path, model: str | None, *prompts: str, **more: Any) -> Path:
    named = {} if model is None else {"model": model}
    return write(path, [{"prompt": p, "response": f"{p} from a file", **named} for p in prompts])


def test_the_teachers_answer_is_chosen_and_the_students_rejected(tmp_path: Path):
    (pair,) = run(tmp_path, [{"prompt": "p"}])
    assert pair["prompt"] == "p"
    assert pair["chosen"].startswith("p, well said")
    assert pair["rejected"].startswith("said")
    meta = pair["meta"]
    assert meta["models"] == {"chosen": f"{HERE}.teacher", "rejected": f"{HERE}.student"}
    assert meta["on_policy"] == {"chosen": False, "rejected": True}
    settings = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 1024, "seed": 0}
    assert meta["sampling"] == {"teacher": settings, "student": settings}
    assert group_from_row(pair).responses[0].role == CHOSEN


def test_each_epoch_draws_both_sides_anew_and_can_be_repeated(tmp_path: Path):
    made = [
        run(tmp_path / name, PROMPTS, "--epoch", epoch)
        for name, epoch in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert made[0] == made[1]
    for first, second in zip(made[0], made[2], strict=True):
        assert first["prompt"] == second["prompt"]
        assert first["chosen"] != second["chosen"]
        assert first["rejected"] != second["rejected"]
        assert (first["meta"]["epoch"], second["meta"]["epoch"]) == (0, 1)


def test_messages_stay_messages(tmp_path: Path):
    prompt = [{"role": "user", "content": "p"}]
    (pair,) = run(tmp_path, [{"prompt": prompt}])
    assert pair["prompt"] == prompt
    assert pair["chosen"][0]["role"] == "assistant"


def test_answers_of_a_file_are_joined_on_the_prompt(tmp_path: Path):
    file = answers(tmp_path / "teacher.jsonl", f"{HERE}.teacher", "p3", "p1", "p9")
    pairs = run(tmp_path, PROMPTS, "--teacher-answers", file)
    assert [(pair["prompt"], pair["chosen"]) for pair in pairs] == [
        ("p1", "p1 from a file"),
        ("p3", "p3 from a file"),
    ]
    assert reasons(tmp_path) == ["unmatched"] * 3
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(PROMPTS)
    assert told["answers_without_a_prompt"] == {"teacher": 1}
    assert "teacher" not in told["usage"]


def test_both_sides_may_be_files_and_no_model_is_asked(tmp_path: Path):
    strong = answers(tmp_path / "t.jsonl", f"{HERE}.teacher", "p1", "p2")
    weak = write(tmp_path / "s.jsonl", [{"prompt": "p2", "response": "hm"}])
    (pair,) = run(tmp_path, PROMPTS, "--teacher-answers", strong, "--student-answers", weak)
    assert (pair["chosen"], pair["rejected"]) == ("p2 from a file", "hm")
    assert pair["meta"]["models"]["rejected"] == f"{HERE}.student"
    assert report(tmp_path)["usage"] == {}
    assert report(tmp_path)["answers_without_a_prompt"]["student"] == 0


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_what_a_third_model_wrote_is_refused(tmp_path: Path, side: str):
    file = write(
        tmp_path / "given.jsonl",
        [
            {"prompt": "p0", "response": "ours", "model": f"{HERE}.{side}"},
            {"prompt": "p1", "response": "theirs", "model": "stronger"},
            {"prompt": "p2", "response": "unsigned"},
        ],
    )
    pairs = run(tmp_path, PROMPTS[:3], f"--{side}-answers", file)
    assert [pair["prompt"] for pair in pairs] == ["p0", "p2"]
    assert reasons(tmp_path) == ["third_model"]


def test_a_folder_is_known_by_its_last_part_as_records_have_it(tmp_path: Path):
    file = answers(tmp_path / "t.jsonl", "big", "p0")
    words = ("--model", f"{HERE}.student", "--teacher-model", tmp_path / "models" / "big")
    made = build(tmp_path, "distill_pairs", PROMPTS[:1], *words, "--teacher-answers", file)
    assert made[0]["meta"]["models"]["chosen"] == "big"


def test_cut_and_empty_answers_are_rejected_with_their_reasons(tmp_path: Path):
    rows = [{"prompt": p} for p in ("long", "silent", "fine")]
    assert [pair["prompt"] for pair in run(tmp_path, rows)] == ["fine"]
    assert reasons(tmp_path) == ["truncated", "empty"]


def test_an_answer_that_a_file_says_was_cut_is_rejected(tmp_path: Path):
    row = {"prompt": "p0", "response": "on and", "finish_reason": "length"}
    file = write(tmp_path / "t.jsonl", [row])
    with pytest.raises(UserError, match="truncated"):
        run(tmp_path, PROMPTS[:1], "--teacher-answers", file)


def test_nothing_matched_is_an_error_and_no_file(tmp_path: Path):
    file = answers(tmp_path / "t.jsonl", None, "elsewhere")
    with pytest.raises(UserError, match=r"unmatched \(5 rows\)"):
        run(tmp_path, PROMPTS, "--teacher-answers", file)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_column_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `prompt`.*did you mean `prompts`"):
        run(tmp_path, [{"prompts": "p"}])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--teacher-model", "m"], "both m"),
        (["--teacher-model", "t", "--epoch", "-1"], "counts from 0"),
        ([], "--teacher-model"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], told: str):
    base = ["--input", "a", "--output", "b.jsonl", "--model", "m"]
    with pytest.raises(UserError, match=told):
        parse(Options, [*base, *words], "alignment build distill_pairs")


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        return Answer(f"{body['model']} on {last_words(body)}")

    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"task {i}"} for i in range(20)])
    words = ("build", "distill_pairs", "--input", source, "--teacher-model", "big")
    made = survives_a_kill(tmp_path, script, *words, "--teacher-url", "{url}", models=2)
    assert [(row["chosen"], row["rejected"]) for row in made] == [
        (f"big on task {i}", f"tiny on task {i}") for i in range(20)
    ]


@pytest.mark.slow
def test_a_real_server_is_the_student_and_its_pairs_train(tmp_path: Path):
    prompts = [f"task {i}" for i in range(20)]
    source = write(tmp_path / "prompts.jsonl", [{"prompt": p} for p in prompts])
    file = answers(tmp_path / "t.jsonl", "big", *prompts)
    with running(save_parrot(tmp_path / "parrot", "It is.", "It is not.")) as served:
        words = ("build", "distill_pairs", "--input", source, "--max-tokens", "8")
        teacher_words = ("--teacher-model", "big", "--teacher-answers", file)
        made = builds_on(served, tmp_path, *words, *teacher_words)
    assert {row["rejected"] for row in made} == {"It is.", "It is not."}
    trains(tmp_path, tmp_path / "out.jsonl", "distillm2")
