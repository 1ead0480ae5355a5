"""From an answer to its minimal revision: parsing, pairs, rejects, and real replies of GPT-4."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError, parse
from alignment.core.groups import group_from_row
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Reply, Request
from alignment.llm.rows import Reject
from data_builders.clair import Options, parse_revision
from data_builders.statistics import jaccard
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.llm.real_server import running, save_parrot
from tests.llm.server import Answer, Body, last_words

SPELLINGS = [
    "## Revised answer",
    "### Revised Answer:",
    "**Revised answer**",
    "**Revised answer:**",
    "**Corrected Student Solution**:",
    "{corrected_student_solution}",
    "{corrected_student_solution}:",
    "**{corrected_student_solution}**",
    "`{corrected_student_solution}`:",
    "Revised answer:",
    "corrected_student_solution:",
    "2. **Revised answer:**",
    "**{Corrected Student's Solution}:**",
    "[Corrected student solution]",
    "## Improved response",
    "### {corrected_student_solution}:",
]


@pytest.mark.parametrize("gap", ["\n", "\n\n", " "])
@pytest.mark.parametrize("marker", SPELLINGS)
def test_every_spelling_of_the_marker_splits_the_reply(marker: str, gap: str):
    text = f"## Reasoning\nIt is wrong.\n\n{marker}{gap}The answer.\nIts end.\n"
    assert parse_revision(text) == ("It is wrong.", "The answer.\nIts end.")


@pytest.mark.parametrize("marker", ["corrected_student_solution", "Revised answer"])
def test_a_bare_name_is_a_marker_alone_on_its_line(marker: str):
    assert parse_revision(f"Why.\n{marker}\nThe answer.") == ("Why.", "The answer.")
    with pytest.raises(Reject):
        parse_revision(f"{marker} is what I should write.")


@pytest.mark.parametrize("marker", SPELLINGS)
def test_an_answer_that_repeats_the_marker_is_kept_whole(marker: str):
    text = f"{{teacher_reasoning}}: why\n{marker}\nFirst part.\n{marker}\nSecond part."
    assert parse_revision(text) == ("why", f"First part.\n{marker}\nSecond part.")


def test_a_mention_within_the_reasoning_does_not_split():
    text = (
        "Reasoning: the {corrected_student_solution} must be shorter, and the revised answer "
        "clear.\n\n{corrected_student_solution}\nShort."
    )
    assert parse_revision(text).answer == "Short."


def test_a_marker_within_a_line_counts_where_no_line_begins_with_one():
    text = "I made it shorter. {corrected_student_solution}: Short."
    assert parse_revision(text) == ("I made it shorter.", "Short.")


def test_bold_text_after_the_marker_belongs_to_the_answer():
    assert parse_revision("## Revised answer\n**Note** well").answer == "**Note** well"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "## Worsened answer\nworse",
        "Here is a revised answer for you",
    ],
)
def test_a_reply_without_the_marker_is_a_failure_to_parse(text: str):
    with pytest.raises(Reject) as caught:
        parse_revision(text)
    assert (caught.value.reason, caught.value.details) == ("parse_failed", {"reply": text})


def test_an_answer_may_be_empty_or_the_reasoning():
    assert parse_revision("why\n## Revised answer\n") == ("why", "")
    assert parse_revision("## Revised answer\nonly this") == ("", "only this")


def test_the_inverse_direction_has_markers_of_its_own():
    text = "## Reasoning\nA slip.\n## Worsened answer\nTwo and two is five."
    assert parse_revision(text, "worsen") == ("A slip.", "Two and two is five.")


@pytest.fixture(scope="module")
def real(shared_dir: Path) -> list[dict[str, Any]]:
    path = shared_dir / "data" / "clair" / "revisions.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the shared files")
    return [row for _, row in read_rows(path)]


def test_all_real_revisions_parse(real: list[dict[str, Any]]):
    assert len(real) == 14
    for row in real:
        rationale, answer = parse_revision(row["raw_completion"])
        assert row["raw_completion"].endswith(answer)
        assert "{" not in rationale[:2]
        assert "teacher_reasoning" not in rationale
        assert "corrected_student_solution" not in answer
        assert len(rationale) > 100


def test_real_revisions_are_closer_to_their_start_than_to_each_other(real: list[dict[str, Any]]):
    answers = [parse_revision(row["raw_completion"]).answer for row in real]
    for index, row in enumerate(real):
        others = [jaccard(other, row["student"]) for i, other in enumerate(answers) if i != index]
        assert jaccard(answers[index], row["student"]) > max(others)


def test_real_revisions_keep_a_repeated_marker(real: list[dict[str, Any]]):
    for row in real:
        answer = parse_revision(row["raw_completion"]).answer
        for marker in ("{corrected_student_solution}:", "\n{corrected_student_solution}\n"):
            text = row["raw_completion"] + f"\n{marker} once more"
            assert parse_revision(text).answer == f"{answer}\n{marker} once more"


def reviser(request: Request) -> str | Reply:
    """Doubles the exclamation marks of an answer, or does what the answer asks of it."""
    text = as_text(request.prompt)
    match sections(text)["answer"]:
        case "endless":
            return Reply("## Revised answer\nand then and then", finish_reason="length")
        case "forbidden":
            return Reply("I would rather not.", finish_reason="content_filter")
    return revise(text)


def revise(text: str) -> str:
    answer = sections(text)["answer"]
    match answer:
        case "no marker":
            return "I would not change it."
        case "same":
            return "## Revised answer\n same "
        case "nothing":
            return "## Revised answer\n"
    heading = "Worsened" if "worse" in text.split("----------")[1] else "Revised"
    return f"## Reasoning\nToo tame.\n\n## {heading} answer\n{answer}!"


def run(tmp_path: Path, rows: list[dict[str, Any]], *argv: str) -> list[dict[str, Any]]:
    source, output = tmp_path / "answers.jsonl", tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = f"program:{__name__}.reviser"
    dispatch(
        ["build", "clair", "--input", str(source), "--output", str(output), "--model", model, *argv]
    )
    return [row for _, row in read_rows(output)]


def test_a_revision_becomes_a_pair_with_the_plain_prompt(tmp_path: Path):
    (pair,) = run(tmp_path, [{"prompt": "Greet me.", "response": "Hello", "model": "small"}])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("Greet me.", "Hello!", "Hello")
    meta = pair["meta"]
    assert meta["builder"] == "clair"
    assert meta["rationale"] == "Too tame."
    assert meta["on_policy"] == {"chosen": False, "rejected": True}
    assert meta["models"] == {"chosen": f"program:{__name__}.reviser", "rejected": "small"}
    assert meta["sampling"] == {"temperature": 0.7, "max_tokens": 4096, "seed": 0}
    assert sections(meta["generation_prompt"]) == {"task": "Greet me.", "answer": "Hello"}


def test_worsening_swaps_the_sides(tmp_path: Path):
    (pair,) = run(tmp_path, [{"prompt": "p", "response": "fine"}], "--direction", "worsen")
    assert (pair["chosen"], pair["rejected"]) == ("fine", "fine!")
    assert pair["meta"]["on_policy"] == {"chosen": True, "rejected": False}


def test_messages_give_a_pair_of_messages(tmp_path: Path):
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Greet me."}]
    (pair,) = run(tmp_path, [{"prompt": prompt, "response": "Hello"}])
    assert pair["prompt"] == prompt
    assert pair["chosen"] == [{"role": "assistant", "content": "Hello!"}]
    shown = sections(pair["meta"]["generation_prompt"])["task"]
    assert shown == "system: Be kind.\n\nuser: Greet me."


ROWS = [
    {"prompt": "p1", "response": "kept"},
    {"prompt": "p2", "response": "no marker"},
    {"prompt": "p3", "response": "same"},
    {"prompt": "p4", "response": "nothing"},
    {"prompt": "p5", "response": "cut", "finish_reason": "length"},
    {"prompt": "", "response": "x"},
    {"prompt": "p7"},
    {"prompt": "p8", "response": "kept too"},
    {"prompt": "p9", "response": "endless"},
    {"prompt": "p10", "response": "forbidden"},
]


def test_every_row_is_kept_or_rejected_with_its_reason(tmp_path: Path):
    pairs = run(tmp_path, ROWS)
    assert [pair["prompt"] for pair in pairs] == ["p1", "p8"]
    rejects = [row for _, row in read_rows(tmp_path / "pairs.jsonl.rejects.jsonl")]
    assert [row["reason"] for row in rejects] == [
        "parse_failed",
        "identical",
        "empty",
        "truncated",
        "no_prompt",
        "no_response",
        "truncated",
        "refused",
    ]
    assert rejects[0]["reply"] == "I would not change it."
    assert rejects[0]["row"] == ROWS[1]
    report = json.loads((tmp_path / "pairs.jsonl.report.json").read_text())
    assert report["kept"] + sum(report["dropped"].values()) == len(ROWS)
    assert report["statistics"]["pairs"]["length_win_rate"] == 1.0


def test_pairs_are_what_training_reads(tmp_path: Path):
    for pair in run(tmp_path, ROWS):
        group = group_from_row(pair)
        assert [response.content for response in group.responses] == [
            pair["chosen"],
            pair["rejected"],
        ]


def test_a_run_is_the_same_twice_byte_for_byte(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, ROWS)
    first, second = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ("a", "b"))
    assert first == second


def test_an_output_that_exists_is_refused_until_a_flag_allows_it(tmp_path: Path):
    run(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"pairs\.jsonl exists; pass `--resume`"):
        run(tmp_path, ROWS)
    assert len(run(tmp_path, ROWS, "--resume")) == 2
    assert len(run(tmp_path, ROWS[:1], "--overwrite")) == 1


def test_an_input_without_answers_is_an_error_that_names_the_nearest_column(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `response` or .*did you mean `responce`"):
        run(tmp_path, [{"prompt": "p", "responce": "r"}])
    assert not (tmp_path / "pairs.jsonl").exists()


def policy(request: Request) -> str | Reply:
    """Greets, says nothing, or does not end."""
    match as_text(request.prompt):
        case "Be silent.":
            return " "
        case "Go on.":
            return Reply("and then", finish_reason="length")
    return "Good day"


def test_the_model_to_be_trained_answers_rows_without_an_answer(tmp_path: Path):
    rows = [
        {"prompt": "Greet me.", "response": "Hello", "model": "small"},
        *({"prompt": prompt} for prompt in ("Greet her.", "Be silent.", "Go on.")),
    ]
    named = f"program:{__name__}.policy"
    own, drawn = run(tmp_path, rows, "--policy-model", named, "--policy-temperature", "0.5")
    assert (own["rejected"], own["meta"]["models"]["rejected"]) == ("Hello", "small")
    assert "policy_sampling" not in own["meta"]
    assert (drawn["chosen"], drawn["rejected"]) == ("Good day!", "Good day")
    assert drawn["meta"]["models"]["rejected"] == named
    assert drawn["meta"]["policy_sampling"] == {"temperature": 0.5, "max_tokens": 2048, "seed": 0}
    rejects = [row["reason"] for _, row in read_rows(tmp_path / "pairs.jsonl.rejects.jsonl")]
    assert rejects == ["empty", "truncated"]


def test_a_prompt_file_of_ones_own_is_used(tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text("[answer {{ fence }}]\n{{ response }}\n[/answer {{ fence }}]\n----------")
    (pair,) = run(tmp_path, [{"prompt": "p", "response": "Hi"}], "--prompt", str(path))
    assert pair["meta"]["generation_prompt"].startswith("[answer ")
    path.write_text("{{ respons }}")
    with pytest.raises(UserError, match="did you mean `response`"):
        run(tmp_path, [], "--prompt", str(path), "--overwrite")


def test_the_recipe_is_one_of_this_builder():
    path = Path(__file__).parents[2] / "recipes" / "clair" / "build.yaml"
    options = parse(Options, ["--config", str(path)], "alignment build clair")
    assert (options.direction, options.temperature, options.max_tokens) == ("improve", 0.7, 4096)


def test_datasets_reads_the_pairs(tmp_path: Path):
    run(tmp_path, ROWS)
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "pairs.jsonl"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded.column_names == ["prompt", "chosen", "rejected", "meta"]
    assert loaded["chosen"][:] == ["kept!", "kept too!"]


def answers(folder: Path, count: int) -> Path:
    source = folder / "answers.jsonl"
    rows = [
        {"prompt": f"p{i}", "response": "same" if i % 10 == 9 else f"r{i}"} for i in range(count)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


@pytest.mark.slow
def test_killed_half_way_and_run_again_the_server_sees_no_call_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        return Answer(revise(last_words(body)))

    words = ("build", "clair", "--input", answers(tmp_path, 60))
    made = survives_a_kill(tmp_path, script, *words)
    assert [row["prompt"] for row in made] == [f"p{i}" for i in range(60) if i % 10 != 9]


@pytest.mark.slow
def test_a_real_server_revises_and_its_pairs_train(tmp_path: Path):
    with running(save_parrot(tmp_path / "parrot", "## Revised answer\nA")) as served:
        words = ("build", "clair", "--input", answers(tmp_path, 20))
        made = builds_on(served, tmp_path, *words)
    assert {row["chosen"] for row in made} == {"A"}
    assert len(made) == 20
    metrics = trains(tmp_path, tmp_path / "out.jsonl", "apo")
    assert metrics[0]["loss"] == pytest.approx(1.0, abs=1e-5)
