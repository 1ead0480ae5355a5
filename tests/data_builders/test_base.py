"""From a builder to a data set: one output or several, checks, models, warnings, reports."""

import importlib
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub import DatasetCard

from alignment.cli import UserError, parse
from alignment.core.groups import CHOSEN, REJECTED, Group, Response
from alignment.core.rows import read_rows
from alignment.llm.engine import LLM
from alignment.llm.prompts import as_messages
from alignment.llm.protocol import Request
from alignment.llm.rows import Bundle, Reject, Row, prompt_of
from data_builders.base import BuildOptions, JudgeOptions, Made, build_dataset
from data_builders.summary import command_of


def writer(request: Request) -> str:
    """Repeats the last message."""
    return str(as_messages(request.prompt)[-1]["content"])


def critic(request: Request) -> str:
    """Finds everything good."""
    return "good"


@dataclass(kw_only=True)
class Judged(JudgeOptions, BuildOptions):
    """A builder that asks both."""


WRITER, CRITIC = f"program:{__name__}.writer", f"program:{__name__}.critic"


def options(folder: Path, rows: Sequence[Row] = (), **changes: Any) -> Judged:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"input": source, "output": folder / "out.jsonl", "model": WRITER}
    return Judged(**{**given, **changes})


def pair(prompt: Any, chosen: Any = "yes", rejected: Any = "no", **meta: Any) -> Group:
    sides = Response(chosen, role=CHOSEN), Response(rejected, role=REJECTED)
    return Group(prompt, sides, {"builder": "test", "version": "1", **meta})


def made(folder: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(folder / "out.jsonl")]


def rejects(folder: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(folder / "out.jsonl.rejects.jsonl")]


def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "out.jsonl.report.json").read_text())
    return loaded


def test_one_row_may_make_several_and_a_part_that_fails_is_listed(tmp_path: Path):
    async def build(row: Row, llm: LLM) -> list[Made]:
        return [
            pair(row["prompt"]),
            pair(row["prompt"], "same", "same "),
            Reject("parse_failed", "no verdict", reply="?"),
        ]

    build_dataset(options(tmp_path, [{"prompt": "p"}, {"prompt": "q"}]), build)
    assert [row["prompt"] for row in made(tmp_path)] == ["p", "q"]
    told = report(tmp_path)
    assert (told["kept"], told["written"], told["dropped"]) == (2, 2, {})
    assert told["partial"] == {"identical": 2, "parse_failed": 2}
    assert [row["reason"] for row in rejects(tmp_path)] == ["identical", "parse_failed"] * 2
    assert rejects(tmp_path)[1]["reply"] == "?"


def test_several_rows_may_make_one_and_are_counted_as_several(tmp_path: Path):
    named = [(f"a:{n}", {"prompt": "p", "response": "x" * n}) for n in range(5)]
    bundles = [
        ("p", Bundle(named[:3], prompt="p", longest="xx")),
        ("q", Bundle(named[3:], prompt="q", longest="")),
    ]

    async def build(row: Row, llm: LLM) -> Group:
        if not row["longest"]:
            raise Reject("unmatched", "no answer")
        return pair(row["prompt"], row["longest"])

    build_dataset(options(tmp_path), build, rows=bundles)
    told = report(tmp_path)
    assert (told["kept"], told["dropped"], told["written"]) == (3, {"unmatched": 2}, 1)
    assert [row["source"] for row in rejects(tmp_path)] == ["a:3", "a:4"]


def test_rows_that_are_no_groups_are_written_as_they_are(tmp_path: Path):
    rows: list[Row] = [
        {"prompt": "p", "completion": "c", "meta": {"builder": "test"}},
        {"instruction": "p", "output": "o", "judgment": "too short"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]},
    ]

    async def build(row: Row, llm: LLM) -> list[Made]:
        return [*rows]

    build_dataset(options(tmp_path, [{"prompt": "p"}]), build)
    assert made(tmp_path) == rows


def test_a_prompt_with_what_was_added_to_generate_is_refused(tmp_path: Path):
    async def build(row: Row, llm: LLM) -> Group:
        shown = row["prompt"] if row["prompt"] == "plain" else f"Be kind. {row['prompt']}"
        return pair(shown)

    build_dataset(options(tmp_path, [{"prompt": "plain"}, {"prompt": "changed"}]), build)
    assert [row["prompt"] for row in made(tmp_path)] == ["plain"]
    (rejected,) = rejects(tmp_path)
    assert rejected["reason"] == "prompt_changed"
    assert "`meta.generation_prompt`" in rejected["message"]


def test_a_prompt_may_become_the_users_message(tmp_path: Path):
    async def build(row: Row, llm: LLM) -> Group:
        turns = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
        return pair([{"role": "user", "content": row["prompt"]}], *turns)

    build_dataset(options(tmp_path, [{"prompt": "p"}]), build)
    assert made(tmp_path)[0]["prompt"] == [{"role": "user", "content": "p"}]


def test_a_conversation_that_ends_with_the_assistant_is_rejected_before_a_call(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    asked = []

    async def build(row: Row, llm: LLM) -> Group:
        asked.append(row)
        return pair(row["prompt"])

    build_dataset(options(tmp_path, [{"prompt": turns}, {"prompt": "p"}]), build)
    assert [row["prompt"] for row in asked] == ["p"]
    assert [row["reason"] for row in rejects(tmp_path)] == ["prompt_ends_with_assistant"]


@pytest.mark.parametrize("prompt", [5, {"text": "p"}, ["p"], [{"role": "user"}], True])
def test_a_prompt_of_another_type_is_rejected_by_name(prompt: Any, tmp_path: Path):
    build_dataset(options(tmp_path, [{"prompt": prompt}, {"prompt": "p"}]), kind_pair)
    (rejected,) = rejects(tmp_path)
    assert rejected["reason"] == "bad_type"
    assert rejected["message"].startswith("`prompt` must be text or a list of messages")


def test_a_builder_takes_its_models_in_their_order(tmp_path: Path):
    chosen = options(tmp_path, [{"prompt": "p"}], judge_model=CRITIC)
    assert chosen.judge is not None

    async def build(row: Row, llm: LLM, judge: LLM) -> Group:
        answers = [await model.chat([{"role": "user", "content": "p"}]) for model in (llm, judge)]
        return pair(row["prompt"], *(answer.text for answer in answers))

    build_dataset(chosen, build, models={"generator": chosen.generator, "judge": chosen.judge})
    (row,) = made(tmp_path)
    assert (row["chosen"], row["rejected"]) == ("p", "good")
    assert {role: usage["calls"] for role, usage in report(tmp_path)["usage"].items()} == {
        "generator": 1,
        "judge": 1,
    }


@pytest.mark.parametrize("same", [True, False])
def test_a_judge_of_its_own_answers_is_warned_of(
    same: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    chosen = options(tmp_path, [{"prompt": "p"}], judge_model=WRITER if same else CRITIC)
    assert chosen.judge is not None

    async def build(row: Row, llm: LLM, judge: LLM) -> Group:
        return pair(row["prompt"])

    with caplog.at_level(logging.WARNING):
        build_dataset(chosen, build, models={"generator": chosen.generator, "judge": chosen.judge})
    told = [record.getMessage() for record in caplog.records if record.name.startswith("data_bu")]
    assert len(told) == same
    assert all("generator and judge are both" in line and "prefer" in line for line in told)


def test_a_builder_of_files_asks_no_model(tmp_path: Path):
    async def build(row: Row) -> Group:
        return pair(row["prompt"])

    build_dataset(options(tmp_path, [{"prompt": "p"}]), build, models={})
    assert len(made(tmp_path)) == 1


def test_where_everything_is_dropped_there_is_an_error_and_no_file(tmp_path: Path):
    async def build(row: Row, llm: LLM) -> list[Made]:
        return []

    with pytest.raises(UserError, match=r"nothing came out of .*in\.jsonl: empty \(2 rows\)"):
        build_dataset(options(tmp_path, [{"prompt": "p"}, {"prompt": "q"}]), build)
    assert not (tmp_path / "out.jsonl").exists()
    assert len(rejects(tmp_path)) == 2


def test_a_missing_column_is_told_before_any_call(tmp_path: Path):
    async def build(row: Row, llm: LLM) -> Group:
        raise AssertionError("asked")

    with pytest.raises(UserError, match="no column `prompt`; did you mean `prompts`"):
        build_dataset(options(tmp_path, [{"prompts": "p"}] * 3), build, needs=[["prompt"]])
    assert not (tmp_path / "out.jsonl.rejects.jsonl").exists()


async def kind_pair(row: Row, llm: LLM) -> Group:
    """A builder with all that a row records."""
    shown = f"Kindly: {prompt_of(row)}"
    reply = await llm.chat([{"role": "user", "content": shown}])
    return pair(row["prompt"], reply.text, "no", generation_prompt=shown, sampling={"seed": 0})


ROWS: list[Row] = [{"prompt": f"question {index} of three"} for index in range(3)]


def test_a_card_beside_the_data_tells_where_it_comes_from(tmp_path: Path):
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text('{"prompt": "Question 1 of three!"}\n')
    chosen = options(
        tmp_path, ROWS, license="cc-by-4.0", price=(1.0, 2.0), eval_prompts=(evaluation,)
    )
    build_dataset(chosen, kind_pair)
    card = DatasetCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "cc-by-4.0"
    told = card.data["contrastive_alignment"]
    assert told["models"]["generator"]["model"] == WRITER
    assert (told["builder"], told["version"], told["kept"]) == ("test", "1", 3)
    assert told["dollars"] == report(tmp_path)["dollars"] > 0
    assert "| 1 | exact | eval.jsonl:1 |" in card.text
    assert report(tmp_path)["overlap"] == [{"row": 1, "how": "exact", "source": "eval.jsonl:1"}]
    assert f"alignment build test --price 1.0 2.0 --input {chosen.input} --output" in card.text
    assert "| judge | none |" in card.text


def test_what_a_builder_counts_beside_is_on_report_and_card(tmp_path: Path):
    counted = {"ties_broken": {"best": 2}, "left_out": {}}
    build_dataset(options(tmp_path, ROWS), kind_pair, counts=lambda: counted)
    assert report(tmp_path)["ties_broken"] == {"best": 2}
    card = (tmp_path / "README.md").read_text()
    assert "| ties broken | count |\n| --- | --- |\n| best | 2 |" in card
    assert "left out" not in card


def test_what_is_not_known_is_called_unknown(tmp_path: Path):
    build_dataset(options(tmp_path, ROWS), kind_pair)
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.license == "unknown"
    assert "| cost | unknown: no prices were given |" in card.text


def test_datasets_reads_the_folder_as_its_card_says(tmp_path: Path):
    build_dataset(options(tmp_path, ROWS, output=tmp_path / "data" / "out.jsonl"), kind_pair)
    loaded = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"]["prompt"][:] == [row["prompt"] for row in ROWS]


def test_a_readme_of_someone_else_is_left_alone(tmp_path: Path):
    (tmp_path / "README.md").write_text("# Mine\n")
    build_dataset(options(tmp_path, ROWS), kind_pair)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert (tmp_path / "out.jsonl.README.md").is_file()


def test_a_card_is_written_anew_by_the_build_that_wrote_it_and_by_no_other(tmp_path: Path):
    build_dataset(options(tmp_path, ROWS), kind_pair)
    build_dataset(options(tmp_path, ROWS[:1], overwrite=True), kind_pair)
    assert DatasetCard.load(tmp_path / "README.md").data["contrastive_alignment"]["kept"] == 1
    build_dataset(options(tmp_path, ROWS, output=tmp_path / "other.jsonl"), kind_pair)
    assert DatasetCard.load(tmp_path / "README.md").data["contrastive_alignment"]["kept"] == 1
    assert (tmp_path / "other.jsonl.README.md").is_file()


@pytest.mark.parametrize("text", ["---\n[broken\n---\n", "---\ncontrastive_alignment: x\n---\n"])
def test_a_readme_with_any_front_matter_is_left_alone(text: str, tmp_path: Path):
    (tmp_path / "README.md").write_text(text)
    build_dataset(options(tmp_path, ROWS), kind_pair)
    assert (tmp_path / "README.md").read_text() == text


def test_neither_report_nor_card_holds_the_password_in_an_address(tmp_path: Path):
    chosen = options(tmp_path, ROWS, base_url="http://me:secret@host/v1")

    async def build(row: Row) -> Group:
        return pair(row["prompt"])

    build_dataset(chosen, build, models={})
    for name in ("README.md", "out.jsonl.report.json"):
        text = (tmp_path / name).read_text()
        assert "http://host/v1" in text
        assert "secret" not in text


def test_the_ending_of_the_output_makes_it_parquet(tmp_path: Path):
    build_dataset(options(tmp_path, ROWS), kind_pair)
    chosen = options(tmp_path, [*ROWS, {"prompt": ""}], output=tmp_path / "out.parquet")
    build_dataset(chosen, kind_pair)
    assert [row for _, row in read_rows(tmp_path / "out.parquet")] == made(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("out.parquet*")) == [
        "out.parquet",
        "out.parquet.README.md",
        "out.parquet.ledger",
        "out.parquet.rejects.jsonl",
        "out.parquet.report.json",
    ]
    with pytest.raises(UserError, match="exists; pass `--resume`"):
        build_dataset(chosen, kind_pair)


def test_an_output_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.parquet"):
        options(tmp_path, output=tmp_path / "out.csv")


def test_a_data_set_is_pushed_as_datasets_does_it_with_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What would go over the network is replaced: the Hub cannot be reached from a test."""
    pushed: list[Any] = []

    def record(name: str) -> Any:
        return lambda *args, **kwargs: pushed.append((name, args, kwargs))

    monkeypatch.setattr(datasets.DatasetDict, "push_to_hub", record("rows"))
    monkeypatch.setattr(huggingface_hub, "create_repo", record("repo"))
    monkeypatch.setattr(DatasetCard, "push_to_hub", record("card"))
    chosen = options(tmp_path, ROWS, push_to_hub="me/pairs", hub_private_repo=True)
    build_dataset(chosen, kind_pair)
    assert [name for name, _, _ in pushed] == ["repo", "card", "rows"]
    repo, card, rows = pushed
    assert (repo[1], repo[2]["repo_type"], repo[2]["private"]) == (("me/pairs",), "dataset", True)
    assert card[1][1:] == ("me/pairs",)
    assert str(card[1][0]) == (tmp_path / "README.md").read_text()
    assert rows[1][0]["train"].column_names == ["prompt", "chosen", "rejected", "meta"]
    assert (rows[1][1:], rows[2]) == (("me/pairs",), {"private": True})


def test_a_push_that_fails_leaves_the_data_and_says_how_to_go_on(tmp_path: Path):
    chosen = options(tmp_path, ROWS, push_to_hub="me/pairs")
    with pytest.raises(UserError, match=r"is built, but cannot be pushed to me/pairs: .*--resume"):
        build_dataset(chosen, kind_pair)
    assert len(made(tmp_path)) == 3


def test_a_network_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no route to host.\nmore")

    monkeypatch.setattr(huggingface_hub, "create_repo", fail)
    with pytest.raises(UserError, match="cannot be pushed to me/pairs: no route to host; run"):
        build_dataset(options(tmp_path, ROWS, push_to_hub="me/pairs"), kind_pair)


def test_a_repository_that_cannot_be_is_told_before_any_call(tmp_path: Path):
    with pytest.raises(UserError, match="--push-to-hub a/b/c"):
        build_dataset(options(tmp_path, ROWS, push_to_hub="a/b/c"), kind_pair)
    assert not (tmp_path / "out.jsonl.ledger").exists()


@pytest.mark.parametrize("longer", [8, 9])
def test_pairs_that_teach_length_are_called_so(
    longer: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The chosen side is longer in 8 or 9 of 10 pairs; from 0.9 on it is said."""

    async def build(row: Row, llm: LLM) -> Group:
        return pair(row["prompt"], "yes, indeed" if int(row["prompt"]) < longer else "y")

    build_dataset(options(tmp_path, [{"prompt": str(number)} for number in range(10)]), build)
    assert ("these pairs teach length" in capsys.readouterr().out) == (longer == 9)


def test_a_command_on_a_card_is_what_repeats_the_build(tmp_path: Path):
    chosen = options(tmp_path, judge_model="a judge", resume=True, dry_run=True, price=(1.0, 2.5))
    words = shlex.split(command_of(chosen, "test"))
    assert words[:3] == ["alignment", "build", "test"]
    again = parse(Judged, words[3:], "test")
    assert again == replace(chosen, resume=False)


def test_a_tool_of_alignment_data_is_named_as_one(tmp_path: Path):
    given = {"input": tmp_path / "in.jsonl", "output": tmp_path / "out.jsonl", "model": WRITER}
    kind = type("Options", (Judged,), {"__module__": "alignment.data_tools.inspect"})
    importlib.import_module(kind.__module__)
    assert command_of(kind(**given), "clair").startswith("alignment data inspect --input ")
