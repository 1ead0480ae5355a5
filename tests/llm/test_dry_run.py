"""A dry run counts what the ledger lacks, sends nothing and writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.llm.calls import source_of
from alignment.llm.connect import connect
from alignment.llm.ledger import Ledger
from alignment.llm.model import cached_commit
from alignment.llm.options import CallOptions
from tests.llm.server import Answer, Body, ScriptedServer, serve
from tests.tiny import save_tiny, save_tiny_reward

ROWS = 5


def say(index: int, body: Body) -> Answer:
    return Answer("Verdict: A" if "Verdict" in str(body) else "a new answer")


def write(path: Path, **columns: Any) -> Path:
    rows = [{name: f"{value} {i}" for name, value in columns.items()} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[str]]:
    """A command line for every command that asks models, but for the addresses."""
    prompts = write(tmp_path / "p.jsonl", prompt="say")
    answers = write(tmp_path / "a.jsonl", prompt="say", response="fine")
    others = write(tmp_path / "b.jsonl", prompt="say", response="good")
    pairs = write(tmp_path / "c.jsonl", prompt="say", chosen="fine")
    model, judge = ["--model", "tiny", "--base-url"], ["--judge-model", "tiny", "--judge-url"]
    out = tmp_path / "out"
    return {
        "generate": [
            *("generate", "--prompts", str(prompts), "--output", str(out), "--max-tokens", "7"),
            *model,
        ],
        "clair": [
            *("build", "clair", "--input", str(answers), "--output", f"{out}.jsonl"),
            *("--max-tokens", "7", *model),
        ],
        "winrate": [
            *("eval", "winrate", "--answers", str(answers), "--baseline", str(others)),
            *("--output", str(out), "--max-tokens", "7", *judge),
        ],
        "zero_or_down": [
            *("eval", "zero_or_down", "--pairs", str(pairs), "--output", str(out)),
            *("--max-tokens", "7", "--model", "tiny"),
        ],
    }


def dry_run(server: ScriptedServer, command: list[str], *argv: str) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatch([*command, server.url, "--dry-run", *argv])
    assert ended.value.code == 0


@pytest.mark.parametrize(("name", "calls"), [("generate", 5), ("clair", 5), ("winrate", 10)])
def test_calls_are_counted_and_nothing_is_sent_or_written(
    name: str,
    calls: int,
    commands: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """A win rate takes two calls a row, and both can be counted."""
    before = {path.name for path in tmp_path.iterdir()}
    with serve(say) as server:
        dry_run(server, commands[name])
    told = capsys.readouterr().out
    assert f"dry run over {ROWS} rows: nothing was sent" in told
    assert f"tiny: {calls} calls to make, 0 answers in the ledger" in told
    assert f"at most {7 * calls} completion tokens" in told
    assert "give `--price`" in told
    assert "not counted" not in told
    assert server.bodies == []
    assert {path.name for path in tmp_path.iterdir()} == before


def test_calls_that_depend_on_answers_are_named(
    commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
):
    with serve(say) as server:
        judge = ["--base-url", server.url, "--judge-model", "judge", "--judge-url"]
        dry_run(server, [*commands["zero_or_down"], *judge])
    told = capsys.readouterr().out
    assert "tiny: 5 calls to make" in told
    assert "judge: 0 calls to make" in told
    assert "not counted: two verdicts on each sample, which depend on answers that are not" in told


def test_answers_in_the_ledger_are_not_counted_and_let_later_calls_be_counted(
    commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """All calls of two of five rows are made; then a dry run counts the other three."""
    ledger = ["--ledger", str(tmp_path / "calls.ledger")]
    with serve(say) as server:
        dispatch([*commands["generate"], server.url, *ledger, "--limit", "2"])
        before = (tmp_path / "calls.ledger").read_bytes(), (tmp_path / "out").read_bytes()
        dry_run(server, commands["generate"], *ledger)
        assert len(server.bodies) == 2
    assert "tiny: 3 calls to make, 2 answers in the ledger" in capsys.readouterr().out
    after = (tmp_path / "calls.ledger").read_bytes(), (tmp_path / "out").read_bytes()
    assert after == before


def test_dollars_are_an_upper_bound(
    commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
):
    """5 answers of at most 7 tokens at $1 a token: $35; the prompts cost nothing."""
    with serve(say) as server:
        dry_run(server, commands["generate"], "--price", "0", "1e6")
    assert "about $35.0000 at most" in capsys.readouterr().out


def test_equal_calls_count_once_as_they_are_made_once(
    commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "response": "r"}\n' * 4)
    with serve(say) as server:
        dry_run(server, commands["clair"])
    assert "tiny: 1 calls to make" in capsys.readouterr().out


def test_answers_without_a_bound_are_said_to_be_without(
    commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The samples are in the ledger, so the verdicts on them are counted: two for each of five."""
    with serve(say) as server:
        judge = ["--base-url", server.url, "--judge-model", "judge", "--judge-url"]
        command = [*commands["zero_or_down"], *judge]
        dispatch([*command, server.url, "--ledger", str(tmp_path / "calls.ledger")])
        (tmp_path / "prompt.txt").write_text("{{ prompt }} {{ first }} {{ second }}")
        judge_file = tmp_path / "judge.yaml"
        judge_file.write_text("prompt: prompt.txt\nverdict: letter\nmax_tokens: null\n")
        capsys.readouterr()
        dry_run(
            *(server, command, "--ledger", str(tmp_path / "calls.ledger")),
            *("--judge", str(judge_file)),
        )
    told = capsys.readouterr().out
    assert "judge: 10 calls to make" in told
    assert "(10 calls have no bound and count as 4096 each)" in told


def test_rows_that_would_be_rejected_unasked_are_told(
    commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cut = {"prompt": "p", "response": "r", "finish_reason": "length"}
    whole = {"prompt": "p", "response": "r"}
    lines = [json.dumps(row) + "\n" for row in (cut, whole, cut, {"prompt": "p"})]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    with serve(say) as server:
        dry_run(server, commands["clair"])
    told = capsys.readouterr().out
    assert "rows that would be rejected as they are: truncated 2, no_response 1" in told
    assert "tiny: 1 calls to make" in told


def test_several_samples_are_several_calls(
    commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
):
    with serve(say) as server:
        dry_run(server, commands["generate"], "--samples", "3")
    assert "tiny: 15 calls to make" in capsys.readouterr().out


def test_a_model_here_is_not_loaded_and_its_tokenizer_counts(
    commands: dict[str, list[str]],
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompts = [[{"role": "user", "content": f"say {index}"}] for index in range(ROWS)]
    encode = tokenizer.apply_chat_template
    expected = sum(
        len(encode(prompt, add_generation_prompt=True, return_dict=False)) for prompt in prompts
    )
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_dir.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    command = commands["generate"][: commands["generate"].index("--model")]
    for model in (str(folder), f"vllm:{folder}"):
        with pytest.raises(SystemExit):
            dispatch([*command, "--model", model, "--dry-run"])
        told = capsys.readouterr().out
        assert f"model: 5 calls to make, 0 answers in the ledger; {expected} prompt tokens" in told
        assert "by its tokenizer" in told


def test_rows_that_a_model_here_has_answered_are_not_counted(
    commands: dict[str, list[str]],
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Of five rows in chunks of two the first chunk is saved: three are left."""
    (tmp_path / "out.chunks").mkdir()
    (tmp_path / "out.chunks" / f"{0:09d}.json").write_text("[]")
    command = commands["generate"][: commands["generate"].index("--model")]
    with pytest.raises(SystemExit):
        dispatch([*command, "--model", str(model_dir), "--chunk-size", "2", "--dry-run"])
    assert ": 3 calls to make" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["", "reward:"])
def test_a_dry_run_looks_under_the_names_of_the_run(kind: str, tmp_path: Path):
    """Those of the backend, also where a revision is named that it does not read."""
    folder = (save_tiny_reward if kind else save_tiny)(tmp_path / "a:b")
    settings = [
        CallOptions(device="cpu", model_revision="v1", dry_run=dry) for dry in (False, True)
    ]
    with Ledger(None) as ledger:
        run, dry = (connect(f"{kind}{folder}", None, ledger, options) for options in settings)
        assert source_of(dry.backend) == source_of(run.backend)


def test_a_model_of_the_hub_is_known_by_the_commit_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tmp_path / "models--some--model"
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "snapshots" / "abc" / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cached_commit("some/model") == "abc"
    assert cached_commit("some/other") is None
    assert cached_commit("./some/model") is None
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert cached_commit("some/model") is None  # a folder here


def test_two_servers_on_one_host_with_one_name_for_their_models_are_refused(tmp_path: Path):
    """The ledger leaves ports out, so one would answer for the other."""
    prompts = write(tmp_path / "p.jsonl", prompt="say")
    first, second = "http://localhost:1/v1", "http://localhost:2/v1"
    student = ["--model", "default", "--base-url", first]
    teacher = ["--teacher-model", "default", "--teacher-url", second]
    files = ["--input", str(prompts), "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(UserError, match="both have a model named `default`, which the ledger"):
        dispatch(["build", "distill_pairs", *files, *student, *teacher, "--dry-run"])
    teacher[1] = "large"
    with pytest.raises(SystemExit):
        dispatch(["build", "distill_pairs", *files, *student, *teacher, "--dry-run"])
