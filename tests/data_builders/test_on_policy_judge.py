"""Two answers of one model, ordered by a judge in both orders."""

from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.prompts import as_messages, as_text, sections
from alignment.llm.protocol import Reply, Request
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.conftest import NO, YES
from tests.data_builders.running import build, reasons, rejects, report, write
from tests.llm.real_server import Served
from tests.llm.server import Answer, Body, last_words

ANSWERS = {
    "length": ("short", "quite a bit longer"),
    "reverse": ("quite a bit longer", "short"),
    "same": ("alike", "alike "),
    "first": ("one way", "no other"),
    "mumble": ("hm", "hm hm"),
    "empty": ("", "something"),
}


def policy(request: Request) -> str | Reply:
    words = as_text(as_messages(request.prompt)[-1:])
    if words == "cut":
        return Reply("cut", "length")
    return ANSWERS[words][request.sample]


def verdict(text: str) -> str:
    """Prefers the longer answer; to one task the first, to another it says nothing."""
    shown = sections(text)
    match shown["task"].split()[-1]:
        case "first":
            return "Verdict: A"
        case "mumble":
            return "I cannot say."
    longer = len(shown["answer_A"]) > len(shown["answer_B"])
    return f"One is longer.\nVerdict: {'A' if longer else 'B'}"


def judge(request: Request) -> str:
    return verdict(as_text(request.prompt))


MODELS = ("--model", f"program:{__name__}.policy", "--judge-model", f"program:{__name__}.judge")


def made(folder: Path, *prompts: Any, argv: tuple[str, ...] = MODELS) -> list[dict[str, Any]]:
    return build(folder, "on_policy_judge", [{"prompt": prompt} for prompt in prompts], *argv)


@pytest.mark.parametrize(("prompt", "chosen"), [("length", 1), ("reverse", 0)])
def test_the_preferred_answer_is_chosen(tmp_path: Path, prompt: str, chosen: int):
    (pair,) = made(tmp_path, prompt)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (
        prompt,
        "quite a bit longer",
        "short",
    )
    meta = pair["meta"]
    assert meta["samples"] == {"chosen": chosen, "rejected": 1 - chosen}
    assert meta["on_policy"] == {"chosen": True, "rejected": True}
    assert meta["models"] == {"chosen": MODELS[1], "rejected": MODELS[1]}
    assert meta["judge"]["score"] == float(chosen == 0)
    assert [vote["first"] for vote in meta["judge"]["votes"]] == ["answer", "baseline"]


def test_ties_and_verdicts_that_cannot_be_read_are_rejected(tmp_path: Path):
    prompts = ["length", "same", "first", "mumble", "empty", "cut", ""]
    assert [row["prompt"] for row in made(tmp_path, *prompts)] == ["length"]
    assert reasons(tmp_path) == ["tie", "tie", "unjudged", "empty", "truncated", "no_prompt"]
    assert rejects(tmp_path)[1]["responses"] == ["one way", "no other"]
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(prompts)
    assert set(told["usage"]) == {"generator", "judge"}


def test_a_judge_of_ones_own_is_named_by_its_file(tmp_path: Path):
    path = tmp_path / "judge.yaml"
    prompt = Path(__file__).parents[2] / "eval" / "prompts" / "pairwise.txt"
    path.write_text(f"prompt: {prompt}\nverdict: letter\nmodel: {MODELS[3]}\n")
    (pair,) = made(tmp_path, "length", argv=(*MODELS[:2], "--judge", str(path)))
    assert pair["meta"]["judge"]["model"] == MODELS[3]


def test_without_a_judge_it_says_what_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match="no judge: give `--judge-model`"):
        made(tmp_path, "length", argv=MODELS[:2])


def test_one_model_as_generator_and_judge_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(UserError, match="nothing came out"):
        made(tmp_path, "same", argv=("--model", MODELS[1], "--judge-model", MODELS[1]))
    assert "models prefer what they wrote themselves" in caplog.text


def test_a_run_is_the_same_twice(tmp_path: Path):
    for name in ("a", "b"):
        made(tmp_path / name, "length", "reverse")
    assert (tmp_path / "a/out.jsonl").read_bytes() == (tmp_path / "b/out.jsonl").read_bytes()


def script(index: int, body: Body) -> Answer:
    """The judge's prompt has sections; else an answer as long as the draw's seed says."""
    if "answer_A" in sections(last_words(body)):
        return Answer(verdict(last_words(body)))
    return Answer(f"Answer {'so ' * (body['seed'] % 50)}to {last_words(body)}.")


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_its_pairs_train(tmp_path: Path):
    rows = [{"prompt": f"question {i}"} for i in range(30)]
    made = survives_a_kill(
        *(tmp_path, script, "build", "on_policy_judge"),
        *("--input", write(tmp_path / "in.jsonl", rows)),
        *("--judge-model", "judge", "--judge-url", "{url}"),
        models=2,
    )
    assert len(made) > 20
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in made)
    trains(tmp_path, tmp_path / "killed" / "out.jsonl", "apo")


@pytest.mark.slow
def test_a_real_server_answers(tmp_path: Path, yes_or_no: Served):
    """It draws one of two texts, so that rows end as pairs or as ties of equal texts."""
    rows = [{"prompt": f"question {i}"} for i in range(12)]
    made = builds_on(
        *(yes_or_no, tmp_path, "build", "on_policy_judge"),
        *("--input", write(tmp_path / "in.jsonl", rows)),
        *("--judge-model", MODELS[3], "--max-tokens", 8),
    )
    assert {(row["chosen"], row["rejected"]) for row in made} == {(YES, NO)}
    assert len(made) + report(tmp_path)["dropped"]["tie"] == len(rows)
