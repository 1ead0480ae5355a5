"""Answers in order, the same bits whether interrupted or not, nothing asked twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.adapters import adapter_config
from alignment.cli import UserError, parse
from alignment.commands import generate as command
from alignment.commands.generate import Options, generate, main
from alignment.core.rows import read_rows
from alignment.llm.model import LocalModel
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Request, Stopped
from tests.llm.server import Answer, Body, last_words, serve
from tests.llm.shards_here import run_shards_here


def prompts(folder: Path, count: int = 11) -> Path:
    path = folder / "prompts.jsonl"
    rows = [{"id": i, "prompt": "what the user asked " * (i % 4 + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(folder: Path, model: Path | str, *argv: str, name: str = "out.jsonl") -> Options:
    source = folder / "prompts.jsonl"
    words = ["--model", str(model), "--prompts", str(source), "--output", str(folder / name)]
    words += ["--max-tokens", "6", "--chunk-size", "3", "--batch-size", "4", "--device", "cpu"]
    return parse(Options, [*words, *argv], "alignment generate")


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def test_answers_stand_in_the_order_of_the_prompts_with_all_that_made_them(
    tmp_path: Path, model_dir: Path
):
    prompts(tmp_path)
    report = generate(options(tmp_path, model_dir, "--temperature", "0.8", "--top-k", "50"))
    made = rows(tmp_path / "out.jsonl")
    assert report.kept == 11
    assert [row["id"] for row in made] == list(range(11))
    assert made[0]["meta"]["sampling"] == {
        "temperature": 0.8,
        "top_k": 50,
        "max_tokens": 6,
        "seed": 0,
    }
    assert made[0]["meta"]["fingerprint"]
    assert made[0]["meta"]["verb"] == "chat"
    assert {row["finish_reason"] for row in made} <= {"stop", "length"}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("prompts.jsonl", "out.jsonl", "out.jsonl.settings.json")
    }


def test_equal_prompts_draw_different_answers(tmp_path: Path, model_dir: Path):
    prompts(tmp_path)
    generate(options(tmp_path, model_dir))
    made = rows(tmp_path / "out.jsonl")
    same = [row["response"] for row in made if row["prompt"] == made[0]["prompt"]]
    assert len(set(same)) == len(same) == 3


def test_several_samples_are_several_rows(tmp_path: Path, model_dir: Path):
    prompts(tmp_path, 2)
    generate(options(tmp_path, model_dir, "--samples", "3"))
    made = rows(tmp_path / "out.jsonl")
    assert [(row["id"], row["sample"]) for row in made] == [
        *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    ]
    assert len({row["response"] for row in made}) == 6


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts(tmp_path)
    generate(options(tmp_path, model_dir, name="whole.jsonl"))
    asked: list[int] = []
    write = LocalModel.write

    def interrupted(self: LocalModel, batch: Any, *guide: Any) -> Any:
        asked.append(len(batch))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return write(self, batch, *guide)

    monkeypatch.setattr(LocalModel, "write", interrupted)
    with pytest.raises(Stopped, match=r"interrupted: 5 of 11 rows are missing in .*out\.jsonl; "):
        generate(options(tmp_path, model_dir))
    whole = (tmp_path / "whole.jsonl").read_bytes().splitlines()
    assert (tmp_path / "out.jsonl").read_bytes().splitlines() == whole[:6]
    generate(options(tmp_path, model_dir, "--resume"))
    assert asked == [3, 3, 3, 3, 2]  # the third chunk was lost and is answered again
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_seed_gives_other_answers(tmp_path: Path, model_dir: Path):
    prompts(tmp_path)
    generate(options(tmp_path, model_dir))
    generate(options(tmp_path, model_dir, "--seed", "1", name="other.jsonl"))
    first, second = (rows(tmp_path / name) for name in ("out.jsonl", "other.jsonl"))
    assert all(a["response"] != b["response"] for a, b in zip(first, second, strict=True))


def test_going_on_with_other_settings_is_refused(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(command._Answerer, "chunk", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(options(tmp_path, model_dir))
    with pytest.raises(UserError, match="another temperature; repeat that run's options"):
        generate(options(tmp_path, model_dir, "--temperature", "0.5"))
    generate(options(tmp_path, model_dir, "--temperature", "0.5", "--overwrite"))


def test_an_output_that_exists_is_refused_and_a_finished_one_is_left_alone(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts(tmp_path)
    generate(options(tmp_path, model_dir))
    with pytest.raises(UserError, match=r"out\.jsonl exists"):
        generate(options(tmp_path, model_dir))
    monkeypatch.setattr(LocalModel, "write", lambda *_: 1 / 0)
    assert generate(options(tmp_path, model_dir, "--resume")).kept == 11


def test_text_is_completed_as_it_stands_where_that_is_asked_for(tmp_path: Path, model_dir: Path):
    prompts(tmp_path, 1)
    generate(options(tmp_path, model_dir, "--format", "complete", "--temperature", "0"))
    (row,) = rows(tmp_path / "out.jsonl")
    assert row["meta"]["verb"] == "complete"


def test_rows_without_a_prompt_are_rejected_by_name(tmp_path: Path, model_dir: Path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n{"prompt": "c"}\n')
    report = generate(options(tmp_path, model_dir))
    assert (report.kept, dict(report.dropped)) == (2, {"no_prompt": 1})
    (rejected,) = rows(tmp_path / "out.jsonl.rejects.jsonl")
    assert (rejected["source"], rejected["reason"]) == ("prompts.jsonl:2", "no_prompt")
    assert generate(options(tmp_path, model_dir, "--resume")).dropped == {"no_prompt": 1}


def test_a_server_answers_each_prompt_and_sample_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts(tmp_path)

    def script(index: int, body: Body) -> Answer:
        cut = "length" if len(last_words(body)) > 50 else "stop"
        return Answer(f"answer {body['seed']}", finish_reason=cut)

    with serve(script) as server:
        words = ["--model", "tiny", "--prompts", str(tmp_path / "prompts.jsonl")]
        words += ["--output", str(tmp_path / "out.jsonl"), "--base-url", server.url]
        main([*words, "--samples", "2"])
        main([*words, "--samples", "2", "--resume"])
        assert len(server.bodies) == 22
    made = rows(tmp_path / "out.jsonl")
    assert len({row["response"] for row in made}) == 22
    assert {row["finish_reason"] for row in made} == {"stop", "length"}
    assert "0 calls made, 22 from the ledger" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--chunk-size", "0", "`chunk_size` is 0; it must be at least 1"),
        ("--limit", "-1", "`limit` is -1; it must be at least 1"),
        ("--max-tokens", "0", "`max_tokens` is 0; it must be at least 1"),
        ("--temperature", "-0.1", "`temperature` is -0.1; it must be at least 0"),
        ("--temperature", "nan", "`temperature` is nan; it must be at least 0"),
        ("--top-p", "1.2", "`top_p` is 1.2; it must be above 0 and at most 1"),
        ("--top-k", "-2", "`top_k` is -2; it must be at least -1"),
    ],
)
def test_a_value_out_of_range_is_refused(flag: str, value: str, message: str, tmp_path: Path):
    prompts(tmp_path, 1)
    with pytest.raises(UserError, match=message):
        options(tmp_path, "m", flag, value)


def test_an_adapter_answers_as_far_as_it_is_told_to_go(tmp_path: Path, model_dir: Path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), adapter_config("clm"))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight) if weight.requires_grad else 0)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path / "adapter")
    prompts(tmp_path, 3)
    words: dict[str, tuple[Any, ...]] = {
        "base": (model_dir,),
        "none": (tmp_path / "adapter", "--adapter-kwargs", '{"coefficient": 0}'),
        "full": (tmp_path / "adapter",),
        "beyond": (tmp_path / "adapter", "--adapter-kwargs", '{"coefficient": 2}'),
    }
    answers, prints = {}, set()
    for name, (source, *more) in words.items():
        generate(options(tmp_path, source, "--temperature", "0", *more, name=f"{name}.jsonl"))
        made = rows(tmp_path / f"{name}.jsonl")
        answers[name] = [row["response"] for row in made]
        prints |= {row["meta"]["fingerprint"] for row in made}
    assert answers["none"] == answers["base"] != answers["full"]
    assert len(prints) == 4


def test_settings_of_an_adapter_need_one_that_runs_here(tmp_path: Path, model_dir: Path):
    prompts(tmp_path, 1)
    settings = ("--adapter-kwargs", '{"coefficient": 0}')
    with pytest.raises(UserError, match="is no adapter, so that it takes no adapter_kwargs"):
        generate(options(tmp_path, model_dir, *settings))
    with pytest.raises(UserError, match="needs an adapter that runs here"):
        generate(options(tmp_path, "some-model", *settings, "--base-url", "http://127.0.0.1:9/v1"))


def shout(request: Request) -> str:
    return f"{as_text(request.prompt).upper()} {request.sample}"


def test_on_a_cluster_answers_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The prompts come back, and each time they are drawn anew."""
    commands = run_shards_here(monkeypatch)
    prompts(tmp_path)
    model = f"program:{__name__}.shout"
    generate(options(tmp_path, model, "--samples", "2", name="one.jsonl"))
    generate(options(tmp_path, model, "--samples", "2", "--engine", "ray", "--shards", "3"))
    assert len(commands) == 3
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.parametrize("words", [("--engine", "ray"), ("--shard", "1/2")])
def test_a_model_in_this_process_is_not_shared_out(
    tmp_path: Path, model_dir: Path, words: tuple[str, ...]
):
    prompts(tmp_path)
    with pytest.raises(UserError, match="runs here: serve it, and pass `--base-url`"):
        generate(options(tmp_path, model_dir, *words))
