"""Output in input order, whole or not at all, with a reason for every row that gives none."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.ledger import Ledger
from alignment.llm.lock import locked
from alignment.llm.pacing import Limits
from alignment.llm.program import FakeLLM
from alignment.llm.protocol import CallError, Request, Stopped
from alignment.llm.rows import (
    Bundle,
    MapReport,
    Reject,
    map_rows,
    prompt_of,
    refuse_existing,
    reject_row,
    response_of,
)


def numbered(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for index in range(count):
        yield f"in.jsonl:{index + 1}", {"n": index}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_output_is_in_input_order_whatever_ends_first(tmp_path: Path):
    async def build(row: Any) -> list[dict[str, Any]]:
        await asyncio.sleep(0.002 * (7 - row["n"] % 7))
        return [row]

    report = asyncio.run(map_rows(numbered(50), build, tmp_path / "out.jsonl", window=16))
    assert [row["n"] for row in read(tmp_path / "out.jsonl")] == list(range(50))
    assert str(report) == "kept 50 of 50 rows; dropped 0"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_rejects_carry_their_reason_and_all_rows_are_accounted_for(tmp_path: Path):
    async def build(row: Any) -> list[dict[str, Any]]:
        if row["n"] % 3 == 0:
            raise Reject("empty", "nothing in it", reply="")
        if row["n"] == 4:
            raise CallError("refused", "no")
        return [row, row]

    report = asyncio.run(map_rows(numbered(10), build, tmp_path / "out.jsonl"))
    assert (report.kept, dict(report.dropped)) == (5, {"empty": 4, "refused": 1})
    assert str(report) == "kept 5 of 10 rows; dropped 5 (empty 4, refused 1); 10 rows written"
    assert len(read(tmp_path / "out.jsonl")) == 10
    first, *_ = rejects = read(tmp_path / "out.jsonl.rejects.jsonl")
    assert first == {
        "source": "in.jsonl:1",
        "reason": "empty",
        "message": "nothing in it",
        "reply": "",
        "row": {"n": 0},
    }
    assert [row["row"]["n"] for row in rejects] == [0, 3, 4, 6, 9]


def test_a_part_that_fails_is_listed_and_its_row_is_kept_for_the_others(tmp_path: Path):
    async def build(row: Any) -> list[Any]:
        made = [row, row] if row["n"] else []
        return [*made, Reject("empty", "one"), Reject("identical", "two")]

    report = asyncio.run(map_rows(numbered(3), build, tmp_path / "out.jsonl"))
    assert (report.kept, report.written, dict(report.dropped)) == (2, 4, {"empty": 1})
    assert dict(report.partial) == {"empty": 2, "identical": 2}
    assert str(report) == (
        "kept 2 of 3 rows; dropped 1 (empty 1); 4 rows written; "
        "4 more could not be made (empty 2, identical 2)"
    )
    dropped, *parts = read(tmp_path / "out.jsonl.rejects.jsonl")
    assert (dropped["reason"], dropped["also"]) == ("empty", ["identical: two"])
    assert [(row["row"]["n"], row["partial"]) for row in parts] == [(n, True) for n in (1, 1, 2, 2)]


def test_the_rows_of_a_bundle_are_counted_and_rejected_one_by_one(tmp_path: Path):
    named = list(numbered(5))
    bundles = [("first two", Bundle(named[:2], n=0)), ("last three", Bundle(named[2:], n=1))]

    async def build(row: Any) -> list[Any]:
        if row["n"]:
            raise Reject("unmatched", "only three")
        return [row]

    report = asyncio.run(map_rows(bundles, build, tmp_path / "out.jsonl"))
    assert (report.kept, report.written, dict(report.dropped)) == (2, 1, {"unmatched": 3})
    assert read(tmp_path / "out.jsonl") == [{"n": 0}]
    rejects = read(tmp_path / "out.jsonl.rejects.jsonl")
    assert [(row["source"], row["row"]) for row in rejects] == [*named[2:]]


def test_rows_are_read_as_they_are_needed(tmp_path: Path):
    ahead = []
    done = 0

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for name, row in numbered(100):
            ahead.append(row["n"] - done)
            yield name, row

    async def build(row: Any) -> list[dict[str, Any]]:
        nonlocal done
        await asyncio.sleep(0)
        done += 1
        return []

    asyncio.run(map_rows(rows(), build, tmp_path / "out.jsonl", window=8))
    assert max(ahead) <= 8


def test_an_error_stops_the_job_and_leaves_an_older_output_as_it_was(tmp_path: Path):
    output = tmp_path / "out.jsonl"
    output.write_text("older\n")

    async def build(row: Any) -> list[dict[str, Any]]:
        if row["n"] == 5:
            raise UserError("the key is wrong")
        return [row]

    with pytest.raises(UserError, match="the key is wrong"):
        asyncio.run(map_rows(numbered(10), build, output))
    assert output.read_text() == "older\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_stopped_half_way_and_run_again_nothing_is_asked_twice(tmp_path: Path):
    asked = 0

    def program(request: Request) -> str:
        nonlocal asked
        asked += 1
        if asked == 13:
            raise KeyboardInterrupt
        return f"answer {request.prompt}"

    def job(output: Path) -> None:
        with Ledger(tmp_path / "calls.ledger") as ledger:
            llm = FakeLLM(program, ledger)

            async def build(row: Any) -> list[dict[str, Any]]:
                return [{"text": (await llm.complete(str(row["n"]))).text}]

            asyncio.run(map_rows(numbered(30), build, output, window=4))

    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    job(tmp_path / "out.jsonl")
    assert asked == 30 + 1  # the interrupted call itself is made again
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == [
        f"answer {index}" for index in range(30)
    ]


def answering(folder: Path, rows: int, stop_at: int | None = None, window: int = 8) -> FakeLLM:
    """Maps rows by one call each; the model is stopped at the call for one of them."""
    with Ledger(folder / "calls.ledger") as ledger:

        def program(request: Request) -> str:
            if request.prompt == str(stop_at):
                llm.stop(Stopped("enough", "go on", status=130))
            return f"answer {request.prompt}"

        llm = FakeLLM(program, ledger, Limits(concurrency=1))

        async def build(row: Any) -> list[dict[str, Any]]:
            return [{"text": (await llm.complete(str(row["n"]))).text}]

        asyncio.run(map_rows(numbered(rows), build, folder / "out.jsonl", window=window))
        return llm


def test_a_stopped_job_writes_its_finished_rows_and_a_rerun_the_whole(tmp_path: Path):
    with pytest.raises(Stopped) as caught:
        answering(tmp_path, 30, stop_at=12)
    assert str(caught.value) == (
        f"enough: 17 of 30 rows are missing in {tmp_path / 'out.jsonl'}; go on"
    )
    assert caught.value.status == 130
    expected = [{"text": f"answer {index}"} for index in range(30)]
    assert read(tmp_path / "out.jsonl") == expected[:13]
    assert len(answering(tmp_path, 30).requests) == 17
    assert read(tmp_path / "out.jsonl") == expected


def test_a_rerun_that_is_stopped_early_keeps_what_earlier_runs_finished(tmp_path: Path):
    """Rows 1, 3, 5, ... 19 are in the ledger; the rerun is stopped at row 4."""
    with Ledger(tmp_path / "calls.ledger") as ledger:
        odd = FakeLLM(lambda request: f"answer {request.prompt}", ledger)
        for number in range(1, 20, 2):
            asyncio.run(odd.complete(str(number)))
    with pytest.raises(Stopped, match="7 of 20 rows are missing"):
        answering(tmp_path, 20, stop_at=4)
    kept = [0, 1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 17, 19]
    assert read(tmp_path / "out.jsonl") == [{"text": f"answer {index}"} for index in kept]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("rows", [1, 1000])
def test_a_full_disk_is_told_in_one_line_and_the_older_output_stays(tmp_path: Path, rows: int):
    """One row fails when it is flushed at the end, a thousand fail on the way."""
    (tmp_path / "out.jsonl").write_text("older\n")
    (tmp_path / "out.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(UserError) as caught:
        answering(tmp_path, rows)
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'out.jsonl'}: No space left on device; mend that and run the "
        "same command with `--resume`: finished calls are kept"
    )
    assert (tmp_path / "out.jsonl").read_text() == "older\n"
    assert not (tmp_path / "out.jsonl.partial").is_symlink()


def test_one_output_has_one_writer_and_a_dead_one_does_not_count(tmp_path: Path):
    output = tmp_path / "new" / "out.jsonl"
    with locked(output):
        with pytest.raises(UserError, match=r"another job is writing .*out\.jsonl; wait for it"):
            locked(output).__enter__()
        with locked(tmp_path / "other.jsonl"):
            pass
    assert list(output.parent.iterdir()) == []
    output.with_name("out.jsonl.lock").touch()  # as a killed job leaves it
    with locked(output):
        pass


def test_an_old_file_of_rejects_goes_when_nothing_is_rejected(tmp_path: Path):
    (tmp_path / "out.jsonl.rejects.jsonl").write_text("old\n")

    async def build(row: Any) -> list[dict[str, Any]]:
        return [row]

    asyncio.run(map_rows(numbered(1), build, tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl.rejects.jsonl").exists()


def test_text_that_utf8_cannot_hold_stays_valid_json(tmp_path: Path):
    async def build(row: Any) -> list[dict[str, Any]]:
        return [{"text": "half \ud83d, whole \U0001f600"}]

    asyncio.run(map_rows(numbered(1), build, tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [{"text": "half \ud83d, whole \U0001f600"}]


def test_a_job_that_keeps_nothing_says_why():
    report = MapReport()
    for index in range(3):
        error = Reject("no_response", "no column `response`")
        report.drop(reject_row(f"in.jsonl:{index + 1}", {}, error))
    with pytest.raises(UserError, match=r"nothing came out of in\.jsonl: no_response \(3 rows\): "):
        report.refuse_empty("in.jsonl")
    with pytest.raises(UserError, match="the file holds no rows"):
        MapReport().refuse_empty("in.jsonl")


def test_an_existing_output_is_refused_unless_a_flag_allows_it(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"out exists; pass `--resume`.*or `--overwrite`"):
        refuse_existing(tmp_path / "out", allowed=False)
    refuse_existing(tmp_path / "out", allowed=True)
    refuse_existing(tmp_path / "new", allowed=False)


def test_prompts_and_responses_are_found_under_the_names_that_files_use():
    assert prompt_of({"prompt": "p"}) == "p"
    assert prompt_of({"instruction": "i", "input": "x", "output": "o"}) == "i\n\nx"
    assert prompt_of({"instruction": "i", "input": ""}) == "i"
    assert prompt_of({"instruction": "i", "input": None}) == "i"
    assert response_of({"response": "r", "output": "o"}) == "r"
    assert response_of({"output": "o"}) == response_of({"completion": "o"}) == "o"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "p"}, "no column `prompt`; did you mean `promt`?"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": " \n"}, "`prompt` is empty"),
        ({"prompt": [{"role": "user", "content": " "}]}, "`prompt` is empty"),
        ({"instruction": ""}, "`instruction` is empty"),
        ({"instruction": None, "input": "\n"}, "`instruction` is empty"),
        ({"x": 1, "y": 2}, "no column `prompt`; there is x, y"),
    ],
)
def test_a_missing_prompt_is_told_with_the_nearest_column(row: dict[str, Any], message: str):
    with pytest.raises(Reject) as caught:
        prompt_of(row)
    assert (caught.value.reason, str(caught.value)) == ("no_prompt", message)


HI = {"role": "user", "content": "Hi"}
SILENT = {"role": "assistant", "content": None}


@pytest.mark.parametrize(
    ("prompt", "got"),
    [
        *((3, "int"), (True, "bool"), ({"role": "user"}, "dict")),
        *((["x"], "item 1"), ([None], "item 1"), ([HI, {"role": "user"}], "item 2")),
        *(([HI, SILENT, HI], "item 2"), ([HI, {"role": "user", "content": 5}], "item 2")),
    ],
)
def test_a_prompt_is_text_or_messages(prompt: Any, got: str):
    with pytest.raises(Reject, match=f"must be text or a list of messages .* got .*{got}") as told:
        prompt_of({"prompt": prompt})
    assert told.value.reason == "bad_type"


def test_a_message_that_calls_tools_may_say_nothing():
    prompt = [HI, {**SILENT, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "5"}]
    assert prompt_of({"prompt": prompt}) == prompt


@pytest.mark.parametrize("name", ["instruction", "input"])
def test_an_instruction_and_its_input_are_texts(name: str):
    with pytest.raises(Reject, match=f"`{name}` must be text, got int") as told:
        prompt_of({"instruction": "x", "input": "y", name: 5})
    assert told.value.reason == "bad_type"
