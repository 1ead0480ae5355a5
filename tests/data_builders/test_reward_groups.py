"""Scored groups: principles, ratings mapped back, pairs by rule, published rewards."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError, parse
from alignment.core.groups import group_from_row
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_messages, as_text, sections
from alignment.llm.protocol import Request
from alignment.llm.rows import Row
from data_builders.reward_groups import Options, planned, read_aspects
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.running import build, reasons, report, write
from tests.llm.real_server import running, save_parrot
from tests.llm.server import Answer, Body, last_words

HERE = f"program:{__name__}"
ASK = ("--judge-model", f"{HERE}.judge")


def run(folder: Path, rows: Sequence[Row], *words: str) -> list[dict[str, Any]]:
    return build(folder, "reward_groups", rows, *words)


def writer(request: Request) -> str:
    """An answer of a worth that depends on the sample."""
    system = next((m["content"] for m in as_messages(request.prompt) if m["role"] == "system"), "")
    return f"worth {1 + (request.sample + len(system)) % 5}, {request.sample}, {len(system)}"


def other(request: Request) -> str:
    return "worth 1, other"


def judge(request: Request) -> str:
    return ratings_of(as_text(request.prompt))


def ratings_of(prompt: str) -> str:
    """Rates each answer by the number in it; 0 is a case for N/A, 9 for no block."""
    shown = sections(prompt)
    worths = [text.split()[1].strip(",") for name, text in shown.items() if name != "task"]
    return "\n".join(
        f"Answer {place}\nRating: {'N/A' if worth == '0' else worth}\nRationale: worth {worth}"
        for place, worth in enumerate(worths, 1)
        if worth != "9"
    )


def given(*worths: int, **more: Any) -> Row:
    texts = [f"worth {worth}, {index}" for index, worth in enumerate(worths)]
    return {"prompt": f"rate {worths}", "responses": texts, **more}


def test_answers_that_are_there_are_rated_in_their_order(tmp_path: Path):
    (row,) = run(tmp_path, [given(3, 1, 5, 2)], *ASK)
    assert row["rewards"] == [3.0, 1.0, 5.0, 2.0]
    assert row["responses"][2] == "worth 5, 2"
    judged = row["meta"]["judged"]
    assert set(judged["aspects"]) == {
        *("instruction_following", "truthfulness", "honesty", "helpfulness"),
    }
    assert judged["aspects"]["honesty"]["ratings"] == [3, 1, 5, 2]
    assert sorted(judged["aspects"]["honesty"]["order"]) == [0, 1, 2, 3]
    assert judged["aspects"]["honesty"]["rationales"][1] == "worth 1"
    assert judged["model"] == f"{HERE}.judge"


def test_prompts_are_answered_under_principles_that_are_not_stored_in_them(tmp_path: Path):
    (row,) = run(tmp_path, [{"prompt": "Say."}], *ASK, "--model", f"{HERE}.writer")
    assert row["prompt"] == "Say."
    assert len(row["responses"]) == 4
    meta = row["meta"]
    systems = [asked[0] for asked in meta["generation_prompt"]]
    assert {message["role"] for message in systems} == {"system"}
    known = {p for aspect in read_aspects(Path("ultrafeedback")).all for p in aspect.principles}
    assert {message["content"] for message in systems} <= known
    assert [asked[1:] for asked in meta["generation_prompt"]] == [
        [{"role": "user", "content": "Say."}]
    ] * 4
    assert meta["on_policy"] == [False] * 4
    assert row["models"] == [f"{HERE}.writer"] * 4


def test_without_principles_the_plain_prompt_is_asked(tmp_path: Path):
    words = (*ASK, "--model", f"{HERE}.writer", "--principles", "false")
    (row,) = run(tmp_path, [{"prompt": "Say."}], *words)
    assert row["meta"]["generation_prompt"] == ["Say."] * 4
    assert row["meta"]["on_policy"] == [True] * 4
    assert row["rewards"] == [1.0, 2.0, 3.0, 4.0]


def test_a_principle_joins_a_system_message_that_is_there(tmp_path: Path):
    prompt = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Say."}]
    (row,) = run(tmp_path, [{"prompt": prompt}], *ASK, "--model", f"{HERE}.writer")
    assert row["prompt"] == prompt
    for asked in row["meta"]["generation_prompt"]:
        assert [message["role"] for message in asked] == ["system", "user"]
        assert asked[0]["content"].endswith("\n\nRhyme.")


def test_several_models_answer_and_are_told_apart(tmp_path: Path):
    words = (*ASK, "--model", f"{HERE}.writer", f"{HERE}.other")
    (row,) = run(tmp_path, [{"prompt": "Say."}], *words)
    assert Counter(row["models"]) == {f"{HERE}.writer": 2, f"{HERE}.other": 2}


def test_of_more_models_than_answers_some_are_drawn():
    aspects = read_aspects(Path("ultrafeedback")).all
    plans = [planned(aspects, 17, 4, random.Random(seed)) for seed in range(50)]
    assert all(len({plan.model for plan in made}) == 4 for made in plans)
    assert {plan.model for made in plans for plan in made} == set(range(17))
    assert {plan.sample for made in plans for plan in made} == {0}


def test_of_fewer_models_each_answers_in_turn_and_no_sample_twice():
    made = planned(read_aspects(Path("code")).all, 2, 5, random.Random(0))
    assert len({(plan.model, plan.sample) for plan in made}) == 5
    assert sorted(plan.sample for plan in made) == [0, 0, 1, 1, 2]


def test_for_code_each_prompt_has_one_aspect_that_answers_are_written_and_rated_by(tmp_path: Path):
    words = (*ASK, "--model", f"{HERE}.writer", "--aspects", "code")
    rows = run(tmp_path, [{"prompt": f"Sort {i}."} for i in range(20)], *words)
    known = {aspect.name: set(aspect.principles) for aspect in read_aspects(Path("code")).all}
    drawn = set()
    for row in rows:
        (aspect,) = row["meta"]["judged"]["aspects"]
        drawn.add(aspect)
        assert {asked[0]["content"] for asked in row["meta"]["generation_prompt"]} <= known[aspect]
    assert len(drawn) > 3


def test_an_answer_to_which_no_aspect_applies_leaves_its_group(tmp_path: Path):
    row, pair_row = given(3, 0, 5), given(0, 4)
    (made,) = run(tmp_path, [row, pair_row], *ASK)
    assert made["rewards"] == [3.0, 5.0]
    assert made["meta"]["judged"]["kept"] == [0, 2]
    assert reasons(tmp_path) == ["unrated"]


def test_a_block_too_few_gives_no_ratings_and_keeps_the_words(tmp_path: Path):
    run(tmp_path, [given(3, 1), given(9, 1)], *ASK)
    (rejected,) = [row for _, row in read_rows(tmp_path / "out.jsonl.rejects.jsonl")]
    assert rejected["reason"] == "unparseable"
    assert rejected["reply"] == "Answer 2\nRating: 1\nRationale: worth 1" or (
        rejected["reply"] == "Answer 1\nRating: 1\nRationale: worth 1"
    )
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == 2


def test_groups_with_rewards_need_no_judge(tmp_path: Path):
    (row,) = run(tmp_path, [given(3, 1, rewards=[0.5, -1])])
    assert row["rewards"] == [0.5, -1.0]
    assert [r.reward for r in group_from_row(row).responses] == [0.5, -1.0]


@pytest.mark.parametrize("rule", ["best_worst", "best_random"])
def test_a_pair_has_a_strict_gap_and_tells_its_rule(tmp_path: Path, rule: str):
    rows = [given(*range(5), rewards=[2, 1, 5, 4, 3]), given(1, 2, rewards=[1, 1])]
    (pair,) = run(tmp_path, rows, "--pairs", rule)
    assert (pair["chosen"], pair["score_chosen"]) == ("worth 2, 2", 5.0)
    assert pair["score_rejected"] < 5.0
    assert rule != "best_worst" or pair["rejected"] == "worth 1, 1"
    assert pair["meta"]["pair_rule"] == rule
    assert reasons(tmp_path) == ["no_gap"]


def test_the_random_rule_takes_every_worse_answer_and_never_one_of_the_best(tmp_path: Path):
    rows = [{**given(*range(4), rewards=[5, 1, 2, 5]), "prompt": f"p{i}"} for i in range(40)]
    pairs = run(tmp_path, rows, "--pairs", "best_random")
    assert {pair["score_rejected"] for pair in pairs} == {1.0, 2.0}
    assert report(tmp_path)["ties_broken_by_the_seed"] == {"tie_best": 40}


def test_ties_are_drawn_by_the_seed_and_counted(tmp_path: Path):
    rows = [{**given(1, 2, 3, 4, rewards=[5, 5, 1, 1]), "prompt": f"p{i}"} for i in range(40)]
    sides = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        pairs = run(tmp_path / name, rows, "--pairs", "best_worst", "--seed", seed)
        sides.append([(pair["chosen"], pair["rejected"]) for pair in pairs])
        assert report(tmp_path / name)["ties_broken_by_the_seed"] == {
            "tie_best": 40,
            "tie_worst": 40,
        }
    assert sides[0] == sides[1] != sides[2]
    assert len(set(sides[0])) == 4


def test_a_group_that_was_written_before_is_paired_with_what_it_said(tmp_path: Path):
    words = (*ASK, "--model", f"{HERE}.writer", "--principles", "false")
    first = run(tmp_path / "groups", [{"prompt": "Say."}], *words)
    (pair,) = run(tmp_path / "pairs", first, "--pairs", "best_worst")
    assert (pair["score_chosen"], pair["score_rejected"]) == (4.0, 1.0)
    assert pair["meta"]["on_policy"] == {"chosen": True, "rejected": True}
    assert pair["meta"]["judged"] == first[0]["meta"]["judged"]
    foreign = given(1, 2, rewards=[1, 2], meta={"builder": "mine", "on_policy": 3, "kept": "x"})
    (pair,) = run(tmp_path / "foreign", [foreign], "--pairs", "best_worst")
    assert pair["meta"]["builder"] == "reward_groups"
    assert pair["meta"]["on_policy"] == {"chosen": False, "rejected": False}
    assert pair["meta"]["kept"] == "x"


def test_a_run_is_the_same_twice_byte_for_byte(tmp_path: Path):
    rows = [{"prompt": f"Say {i}."} for i in range(10)]
    made = []
    for name in ("a", "b"):
        run(tmp_path / name, rows, *ASK, "--model", f"{HERE}.writer")
        made.append((tmp_path / name / "out.jsonl").read_bytes())
    assert made[0] == made[1]


def test_answers_that_are_all_alike_are_no_group(tmp_path: Path):
    words = (*ASK, "--model", f"{HERE}.other")
    with pytest.raises(UserError, match="all 4 answers are the same text"):
        run(tmp_path, [{"prompt": "Say."}], *words)


def test_responses_without_rewards_and_without_a_judge_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="name a judge"):
        run(tmp_path, [given(1, 2)])


def test_a_missing_column_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean `response`"):
        run(tmp_path, [{"prompt": "p", "response": "only one"}])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aspects: {a: {about: b}}", "principles"),
        ("aspects: {a: {about: b, principles: []}}", "principles in every aspect"),
        ("aspects: {a: {about: b, principles: [c]}}\ndrawn: never", "drawn: answer"),
        ("aspects: 3", "expected `aspects`"),
        ("[]", "key: value"),
    ],
)
def test_a_file_of_aspects_that_is_none_is_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        read_aspects(tmp_path / "mine.yaml")


def test_a_name_of_aspects_that_does_not_exist_tells_the_nearest():
    with pytest.raises(UserError, match="did you mean `ultrafeedback`"):
        read_aspects(Path("ultra_feedback"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "m"], "name the judge"),
        (["--answers", "1"], "at least 2"),
        (["--model", "m", "--judge-model", "j", "--format", "complete"], "--principles false"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], told: str):
    with pytest.raises(UserError, match=told):
        parse(
            Options,
            ["--input", "a", "--output", "b.jsonl", *words],
            "alignment build reward_groups",
        )


def test_published_rewards_binarise_with_their_ties_counted(shared_dir: Path, tmp_path: Path):
    source = shared_dir / "data" / "rewards" / "alpaca_eval_k8.jsonl.gz"
    if not source.is_file():
        pytest.skip(f"no {source.name} among the shared files")
    words = ["build", "reward_groups", "--input", str(source)]
    dispatch([*words, "--output", str(tmp_path / "out.jsonl"), "--pairs", "best_worst"])
    pairs = [row for _, row in read_rows(tmp_path / "out.jsonl")]
    assert len(pairs) == 805
    assert all(pair["score_chosen"] > pair["score_rejected"] for pair in pairs)
    assert report(tmp_path)["ties_broken_by_the_seed"] == {"tie_best": 5, "tie_worst": 8}


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        asked = last_words(body)
        worth = sum(map(ord, str(body["messages"]))) % 5 + 1
        return Answer(ratings_of(asked) if sections(asked) else f"worth {worth}, {worth}")

    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"task {i}"} for i in range(12)])
    words = ("build", "reward_groups", "--input", source, "--judge-model", "j")
    made = survives_a_kill(tmp_path, script, *words, "--judge-url", "{url}", models=2)
    assert made
    assert all(len(row["rewards"]) == 4 for row in made)


@pytest.mark.slow
def test_a_real_server_rates_answers_and_their_groups_train(tmp_path: Path):
    rows = [given(1, 2, 3), given(4, 5, 1)] * 5
    source = write(tmp_path / "groups.jsonl", [{**r, "prompt": f"{i}"} for i, r in enumerate(rows)])
    says = "".join(f"Answer {n}\nRating: {n}\nRationale: so\n" for n in (1, 2, 3))
    with running(save_parrot(tmp_path / "parrot", says)) as served:
        words = ("build", "reward_groups", "--input", source, "--principles", "false")
        made = builds_on(
            served, tmp_path, *words, "--judge-model", "{model}", "--judge-url", "{url}"
        )
    assert len(made) == 10
    # The parrot rates by place: each answer gets the mean of the places it was shown in.
    assert {sum(row["rewards"]) for row in made} == {6.0}
    assert len({tuple(row["rewards"]) for row in made}) > 1
    for objective in ("nca", "infonca"):
        trains(tmp_path, tmp_path / "out.jsonl", objective)
