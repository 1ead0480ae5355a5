"""Constructive feedback: critiques, refinements, rivals, and thirds by perplexity."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.llm.program import FakeLLM
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import CallError, Reply, Request
from alignment.llm.rows import Reject, Row
from data_builders.cdf import FEEDBACKS, Difficulty, Options, builder, perplexity, thirds
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.running import build, reasons, report, write
from tests.llm.real_server import running, save_parrot
from tests.llm.server import Answer, Body, last_words

HERE = f"program:{__name__}"
MODELS = (
    *("--model", f"{HERE}.model", "--judge-model", f"{HERE}.judge"),
    *("--second-model", f"{HERE}.second"),
)


def run(folder: Path, rows: Sequence[Row], *words: object) -> list[dict[str, Any]]:
    return build(folder, "cdf", rows, *MODELS, *words)


def model(request: Request) -> str:
    """Answers, and revises as the review says."""
    shown = sections(as_text(request.prompt))
    if not shown:
        return "" if "silent" in as_text(request.prompt) else f"so so on {as_text(request.prompt)}"
    if "stubborn" in shown["task"]:
        return f"## Revised answer\n{shown['answer']}"
    return f"## Revised answer\n{shown['answer']}, but {shown['review']}"


def judge(request: Request) -> str:
    return judged(as_text(request.prompt))


def judged(prompt: str) -> str:
    shown = sections(prompt)
    if "answer_A" in shown:
        if "even" in shown["task"]:
            return "Verdict: tie"
        return "Verdict: A" if "great" in shown["answer_A"] else "Verdict: B"
    if "write a better answer" in prompt.lower():
        return "no heading" if "odd" in shown["task"] else "## Improved answer\nfine"
    return "be brief"


def second(request: Request) -> str:
    return f"great on {as_text(request.prompt)}"


def test_every_feedback_gives_a_pair_by_default(tmp_path: Path):
    pairs = run(tmp_path, [{"prompt": "p"}])
    by = {pair["meta"]["feedback"]: pair for pair in pairs}
    assert list(by) == ["critique", "refinement", "preference"]
    assert {pair["rejected"] for pair in pairs} == {"so so on p"}
    assert {pair["prompt"] for pair in pairs} == {"p"}
    assert by["critique"]["chosen"] == "so so on p, but be brief"
    assert by["critique"]["meta"]["critique"] == "be brief"
    assert by["critique"]["meta"]["models"]["chosen"] == f"{HERE}.model"
    assert by["refinement"]["chosen"] == "fine"
    assert by["refinement"]["meta"]["models"]["chosen"] == f"{HERE}.judge"
    assert by["preference"]["chosen"] == "great on p"
    assert by["preference"]["meta"]["models"]["chosen"] == f"{HERE}.second"
    assert len(by["preference"]["meta"]["votes"]) == 2
    for pair in pairs:
        assert pair["meta"]["on_policy"] == {"chosen": False, "rejected": True}
        assert pair["meta"]["sampling"]["answer"]["temperature"] == 0.0
    assert by["critique"]["meta"]["generation_prompt"]["rejected"] is None


def test_a_feedback_that_fails_leaves_the_others_and_is_listed(tmp_path: Path):
    rows = [{"prompt": p} for p in ("odd", "even", "stubborn", "silent")]
    pairs = run(tmp_path, rows)
    made = Counter((pair["prompt"], pair["meta"]["feedback"]) for pair in pairs)
    assert set(made) == {
        *(("odd", "critique"), ("odd", "preference")),
        *(("even", "critique"), ("even", "refinement")),
        *(("stubborn", "refinement"), ("stubborn", "preference")),
    }
    assert sorted(reasons(tmp_path)) == ["empty", "identical", "parse_failed", "tie"]
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)


def test_the_answer_may_win_against_its_rival(tmp_path: Path):
    words = ("--model", f"{HERE}.second", "--second-model", f"{HERE}.model")
    more = ("--judge-model", f"{HERE}.judge", "--feedback", "preference")
    (pair,) = build(tmp_path, "cdf", [{"prompt": "p"}], *words, *more)
    assert (pair["chosen"], pair["rejected"]) == ("great on p", "so so on p")
    assert pair["meta"]["on_policy"] == {"chosen": True, "rejected": False}


def test_messages_stay_messages(tmp_path: Path):
    prompt = [{"role": "user", "content": "p"}]
    for pair in run(tmp_path, [{"prompt": prompt}]):
        assert pair["prompt"] == prompt
        assert pair["chosen"][0]["role"] == "assistant"


@pytest.mark.parametrize("count", [1, 2, 3, 10, 12])
def test_thirds_are_equal_parts_from_easy_to_hard(count: int):
    found = [Difficulty(float(10 - index), f"p{index}") for index in range(count)]
    parts = thirds(found)
    sizes = Counter(parts.values())
    assert max(sizes.values()) - min(sizes[f] for f in FEEDBACKS) <= 1
    ranked = [parts[d.prompt] for d in sorted(found)]
    assert ranked == sorted(ranked, key=FEEDBACKS.index)


def test_a_prompt_that_comes_twice_has_one_place():
    found = [Difficulty(1.0, "a")] * 8 + [Difficulty(2.0, "b"), Difficulty(3.0, "c")]
    assert thirds(found) == {"a": "critique", "b": "refinement", "c": "preference"}


def test_perplexity_is_exp_of_the_mean_negative_logp():
    """exp(-(-1 - 3) / 2) = e^2."""
    llm = FakeLLM(lambda request: Reply(logps=((-1.0, -3.0),)))
    assert asyncio.run(perplexity(llm, "p", "a")) == pytest.approx(math.exp(2))


def test_with_a_split_each_prompt_gets_the_feedback_of_its_third(tmp_path: Path):
    """The answers' mean logps are -1 for p0 to -6 for p5: two prompts for each feedback."""
    source = write(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(6)])
    words = ["--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--split"]
    make = builder(parse(Options, [*words, *MODELS], "alignment build cdf"))

    def answer(request: Request) -> str | Reply:
        if request.verb == "score":
            (text,) = request.continuations
            return Reply(logps=((-1.0 - int(text[-1]), -1.0 - int(text[-1])),))
        return model(request)

    async def all_of_them() -> list[Any]:
        llms = (FakeLLM(answer), FakeLLM(judge), FakeLLM(second))
        rows = ({"prompt": f"p{i}"} for i in range(6))
        return await asyncio.gather(*(make(row, *llms) for row in rows))

    groups = [group for (group,) in asyncio.run(all_of_them())]
    assert [group.meta["feedback"] for group in groups] == [f for f in FEEDBACKS for _ in range(2)]
    assert [group.meta["perplexity"] for group in groups] == pytest.approx(
        [math.exp(1 + i) for i in range(6)]
    )


def test_a_prompt_whose_look_got_no_answer_has_no_third(tmp_path: Path):
    """The score of p1 fails once, while all prompts are looked at for p0."""
    rows = [{"prompt": f"p{i}"} for i in range(2)]
    words = ["--input", str(write(tmp_path / "in.jsonl", rows)), "--output", "out.jsonl", "--split"]
    make = builder(parse(Options, [*words, *MODELS], "alignment build cdf"))
    failed = False

    def answer(request: Request) -> str | Reply:
        nonlocal failed
        if request.verb != "score":
            return model(request)
        if not failed and as_text(request.prompt) == "p1":
            failed = True
            raise CallError("failed", "the connection broke")
        return Reply(logps=((-1.0,),))

    async def in_turn() -> None:
        llms = (FakeLLM(answer), FakeLLM(judge), FakeLLM(second))
        await make(rows[0], *llms)
        assert failed
        with pytest.raises(Reject, match="all rows were looked at; run the same command") as told:
            await make(rows[1], *llms)
        assert told.value.reason == "unsurveyed"

    asyncio.run(in_turn())


def test_with_a_split_an_empty_answer_is_not_scored(tmp_path: Path):
    words = ["--input", "in.jsonl", "--output", "out.jsonl", "--split"]
    make = builder(parse(Options, [*words, *MODELS], "alignment build cdf"))
    llms = [FakeLLM(asked) for asked in (model, judge, second)]

    async def make_one() -> None:
        await make({"prompt": "silent"}, *llms)

    with pytest.raises(Reject, match="the model said nothing"):
        asyncio.run(make_one())
    assert [request.verb for request in llms[0].requests] == ["chat"]


def test_a_run_is_the_same_twice_byte_for_byte(tmp_path: Path):
    rows = [{"prompt": f"p{i}"} for i in range(5)]
    for name in ("a", "b"):
        run(tmp_path / name, rows)
    assert (tmp_path / "a/out.jsonl").read_bytes() == (tmp_path / "b/out.jsonl").read_bytes()


def test_a_judge_that_is_the_model_itself_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    words = ("--model", f"{HERE}.judge", "--judge-model", f"{HERE}.judge")
    with pytest.raises(UserError):
        build(tmp_path, "cdf", [{"prompt": "odd"}], *words, "--feedback", "refinement")
    assert "flatter" in caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judge-model", "j"], "second_model"),
        (["--feedback", "critique"], "judge_model"),
        (["--judge-model", "j", "--feedback", "critique", "--split"], "all three"),
        (["--judge-model", "j", "--feedback", "praise"], "a list of critique"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], told: str):
    base = ["--input", "a", "--output", "b.jsonl", "--model", "m"]
    with pytest.raises(UserError, match=told):
        parse(Options, [*base, *words], "alignment build cdf")


def test_a_missing_column_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `prompt`.*did you mean `promt`"):
        run(tmp_path, [{"promt": "p"}])


def test_nothing_made_is_an_error_and_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="parse_failed"):
        run(tmp_path, [{"prompt": "odd"}], "--feedback", "refinement")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        asked = last_words(body)
        if not sections(asked):
            return Answer(f"{'great' if body['model'] == 'rival' else 'so so'} on {asked}")
        return Answer("## Revised answer\nfine" if "You wrote" in asked else judged(asked))

    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"task {i}"} for i in range(8)])
    words = ("build", "cdf", "--input", source, "--judge-model", "j", "--judge-url", "{url}")
    rival = ("--second-model", "rival", "--second-url", "{url}")
    made = survives_a_kill(tmp_path, script, *words, *rival, models=3)
    assert Counter(row["meta"]["feedback"] for row in made) == dict.fromkeys(FEEDBACKS, 8)


@pytest.mark.slow
def test_a_model_here_is_split_by_its_own_perplexity(tmp_path: Path):
    """The parrot is sure of its one token, so perplexity is 1 and prompts rank by their text."""
    words = ("--model", save_parrot(tmp_path / "parrot", "It is"), "--device", "cpu")
    more = ("--judge-model", f"{HERE}.judge", "--second-model", f"{HERE}.second", "--split")
    rows = [{"prompt": f"p{i}"} for i in range(6)]
    pairs = build(tmp_path, "cdf", rows, *words, *more, "--max-tokens", 6)
    made = {pair["prompt"]: pair["meta"]["feedback"] for pair in pairs}
    # Asked to revise, it says `It is` again, without the heading of an answer.
    assert made == dict.fromkeys(("p2", "p3"), "refinement") | dict.fromkeys(
        ("p4", "p5"), "preference"
    )
    assert reasons(tmp_path) == ["parse_failed"] * 2
    assert [pair["meta"]["perplexity"] for pair in pairs] == pytest.approx([1.0] * 4, abs=1e-6)


@pytest.mark.slow
def test_a_real_server_answers_and_dpo_trains_on_the_pairs(tmp_path: Path):
    rows = [{"prompt": f"task {i}"} for i in range(20)]
    source = write(tmp_path / "prompts.jsonl", rows)
    with running(save_parrot(tmp_path / "parrot", "## Improved answer\nIt is.")) as served:
        words = ("build", "cdf", "--input", source, "--feedback", "refinement")
        judge_words = ("--judge-model", "{model}", "--judge-url", "{url}")
        made = builds_on(served, tmp_path, *words, *judge_words)
    assert {(row["chosen"], row["rejected"]) for row in made} == {
        ("It is.", "## Improved answer\nIt is.")
    }
    trains(tmp_path, tmp_path / "out.jsonl", "dpo")
