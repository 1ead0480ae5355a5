"""RLCD: contrastive prompts, labels by provenance and by a model, and what is dropped."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment.cli import UserError, parse
from alignment.llm.prompts import as_messages, as_text, sections
from alignment.llm.protocol import Reply, Request
from data_builders.affixes import read_affixes
from data_builders.letters import OPENED
from data_builders.rlcd import Options
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.conftest import NO, YES
from tests.data_builders.running import build, reasons, rejects, report, write
from tests.llm.real_server import Served
from tests.llm.server import Answer, Body, last_words

AFFIXES = read_affixes("harmlessness")
POSITIVE = {affix.positive: affix.place for affix in AFFIXES}
NEGATIVE = {affix.negative: affix.place for affix in AFFIXES}
ROOT = Path(__file__).parents[2]


def described(text: str) -> list[str]:
    """The descriptions of all turns of the assistant, in order."""
    return re.findall(r"Assistant \(([^)]*)\):", text)


def base_model(request: Request) -> str | Reply:
    """A base model: goes on with the transcript, as the last description has it."""
    return continuation(str(request.prompt), request.sample)


def continuation(text: str, sample: int) -> str:
    if "no end" in text:
        return "and on and on"
    if "later" in text and sample < 3:
        return ""
    if "alike" in text:
        return " Whatever.\n\nHuman: ?"
    last = (described(text) or [f"plain {sample}"])[-1]
    return f" This is {last}.\n\nHuman: Thanks."


def labeller(request: Request) -> Reply:
    """Finds an answer under a positive description better, with probability 0.8."""
    text = as_text(request.prompt)
    shown = sections(text)
    if "silent" in shown["task"]:
        return Reply("Hm", "length", top_logprobs=({"Hm": 0.0},))
    first = _is_positive(shown["answer_A"])
    if "against" in shown["task"]:
        first = not first
    chance = 0.8 if first else 0.2
    return Reply("A", "length", top_logprobs=({"A": math.log(chance), "B": math.log(1 - chance)},))


def judge(request: Request) -> str:
    shown = sections(as_text(request.prompt))
    return f"Verdict: {'A' if _is_positive(shown['answer_A']) else 'B'}"


def _is_positive(answer: str) -> bool:
    return answer.removeprefix("This is ").removesuffix(".") in {*POSITIVE, "plain 6"}


MODEL = ("--model", f"program:{__name__}.base_model")
LABELS = ("--judge-model", f"program:{__name__}.labeller", "--labels-by", "top_logprobs")
HH = (
    "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant: So."
    "\n\nHuman: {}\n\nAssistant:"
)


def made(folder: Path, *prompts: Any, argv: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return build(folder, "rlcd", [{"prompt": prompt} for prompt in prompts], *MODEL, *argv)


def test_a_pair_has_its_plain_prompt_and_both_sides_of_one_affix_pair(tmp_path: Path):
    pairs = made(tmp_path, *(f"question {index}" for index in range(40)))
    for index, pair in enumerate(pairs):
        assert pair["prompt"] == f"question {index}"
        meta = pair["meta"]
        affix = AFFIXES[meta["affix"]["index"]]
        assert pair["chosen"] == f"This is {affix.positive}."
        assert pair["rejected"] == f"This is {affix.negative}."
        assert (meta["affix"]["chosen"], meta["affix"]["rejected"]) == affix[1:3]
        assert meta["on_policy"] == {"chosen": False, "rejected": False}
        assert meta["sampling"] == {"temperature": 1.0, "max_tokens": 300, "seed": 0}
    assert len({pair["meta"]["affix"]["index"] for pair in pairs}) > 8


def test_earlier_turns_are_described_by_the_opposite_and_the_last_by_its_own(tmp_path: Path):
    prompts = [HH.format(index) for index in range(20)]
    for prompt, pair in zip(prompts, made(tmp_path, *prompts), strict=True):
        assert pair["prompt"] == prompt
        assert "(" not in prompt + pair["prompt"]
        sides = pair["meta"]["generation_prompt"]
        index = pair["meta"]["affix"]["index"]
        positive, negative = AFFIXES[index].positive, AFFIXES[index].negative
        assert described(sides["chosen"]) == [negative, negative, positive]
        assert described(sides["rejected"]) == [positive, positive, negative]
        assert re.sub(r" \([^)]*\)", "", sides["chosen"]) == prompt
        assert pair["chosen"] == f" This is {positive}."


def test_messages_to_a_chat_model_get_the_polarity_in_a_system_message(tmp_path: Path):
    prompt = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Well?"},
    ]
    chat = ("--format", "chat", "--model", f"program:{__name__}.chat_model")
    (pair,) = build(tmp_path, "rlcd", [{"prompt": prompt}], *chat)
    affix = AFFIXES[pair["meta"]["affix"]["index"]]
    assert pair["prompt"] == prompt
    for side, own, other in (
        ("chosen", affix.positive, affix.negative),
        ("rejected", affix.negative, affix.positive),
    ):
        system, *rest = pair["meta"]["generation_prompt"][side]
        assert rest == prompt
        assert re.search(rf"earlier .*\b{other}\. .*next .*\b{own}\.$", system["content"])
        assert pair[side] == [{"role": "assistant", "content": system["content"].upper()}]


def chat_model(request: Request) -> str:
    """Repeats its system message in capitals."""
    return str(as_messages(request.prompt)[0]["content"]).upper()


def test_answers_are_drawn_anew_and_given_up_with_their_reason(tmp_path: Path):
    prompts = ["fine", "later", "no end", "alike", "", f"{HH.format('x')} Yes.", "fine too"]
    pairs = made(tmp_path, *prompts)
    assert [pair["prompt"] for pair in pairs] == ["fine", "later", "fine too"]
    assert [pair["meta"]["samples"]["chosen"] for pair in pairs] == [0, 3, 0]
    expected = ["no_next_turn", "identical", "no_prompt", "prompt_ends_with_assistant"]
    assert reasons(tmp_path) == expected
    assert rejects(tmp_path)[0]["replies"] == ["and on and on"] * 6
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(prompts)


def test_a_model_labels_softly_whatever_the_order_shown(tmp_path: Path):
    prompts = [f"question {index}" for index in range(20)] + ["against"]
    pairs = made(tmp_path, *prompts, argv=("--label", "rescore", *LABELS))
    assert {pair["meta"]["judge"]["swapped"] for pair in pairs} == {True, False}
    for pair in pairs:
        assert pair["score_chosen"] == pytest.approx(0.8)
        assert pair["score_rejected"] == pytest.approx(0.2)
        positive = pair["meta"]["affix"]["chosen"] in POSITIVE
        assert positive == (pair["prompt"] != "against")
        assert pair["chosen"] == f"This is {pair['meta']['affix']['chosen']}."
    assert "score_chosen" not in made(tmp_path / "plain", "fine")[0]


def test_only_pairs_are_kept_on_which_provenance_and_judge_agree(tmp_path: Path):
    argv = ("--label", "agree", *LABELS)
    pairs = made(tmp_path, "fine", "against", "silent", "fine too", argv=argv)
    assert [pair["prompt"] for pair in pairs] == ["fine", "fine too"]
    assert all(pair["meta"]["affix"]["chosen"] in POSITIVE for pair in pairs)
    assert reasons(tmp_path) == ["disagree", "unjudged"]


def test_rlaif_labels_two_draws_from_the_plain_prompt(tmp_path: Path):
    (pair,) = made(tmp_path, "fine", argv=("--label", "rlaif", *LABELS))
    assert (pair["chosen"], pair["rejected"]) == ("This is plain 6.", "This is plain 0.")
    meta = pair["meta"]
    assert meta["on_policy"] == {"chosen": True, "rejected": True}
    assert (meta["affix"]["chosen"], meta["affix"]["rejected"]) == (None, None)
    assert meta["generation_prompt"]["chosen"] == meta["generation_prompt"]["rejected"]
    assert described(meta["generation_prompt"]["chosen"]) == []


def test_verdicts_in_both_orders_label_too(tmp_path: Path):
    argv = ("--judge-model", f"program:{__name__}.judge", "--labels-by", "verdict")
    (pair,) = made(tmp_path, "fine", argv=("--label", "rescore", *argv))
    assert (pair["score_chosen"], pair["score_rejected"]) == (1.0, 0.0)


def test_the_question_of_a_label_has_the_index_of_the_affix(tmp_path: Path):
    (pair,) = made(
        tmp_path, "fine", argv=("--label", "rescore", *LABELS[2:], "--judge-model", ASKED)
    )
    affix = AFFIXES[pair["meta"]["affix"]["index"]]
    assert ASKED_FOR[-1].rpartition("[/answer_B ")[2].partition("]")[2].strip() == (
        f"{affix.question} Reply with one letter and nothing else, A or B.{OPENED}"
    )


ASKED_FOR: list[str] = []


def remember(request: Request) -> Reply:
    ASKED_FOR.append(str(request.prompt))
    return Reply("A", "length", top_logprobs=({"A": -0.1, "B": -3.0},))


ASKED = f"program:{__name__}.remember"


def test_a_model_that_labels_its_own_answers_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(UserError):
        made(tmp_path, "no end", argv=("--label", "rescore", "--labels-by", "top_logprobs"))
    assert "labels its own answers" in caplog.text


def test_provenance_takes_no_judge(tmp_path: Path):
    with pytest.raises(UserError, match="asks no judge; leave out `judge_model`"):
        made(tmp_path, "fine", argv=LABELS)


def test_the_order_of_rows_plays_no_part(tmp_path: Path):
    prompts = [f"question {index}" for index in range(12)]
    argv = ("--label", "rescore", *LABELS)
    first = made(tmp_path / "a", *prompts, argv=argv)
    random.Random(0).shuffle(prompts)
    second = made(tmp_path / "b", *prompts, argv=argv)
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, second))


def test_hh_rlhf_is_read_as_it_is_and_datasets_reads_the_pairs(tmp_path: Path):
    whole = HH.format("Why?")
    rows = [{"chosen": f"{whole} Because.", "rejected": f"{whole} Hm."}]
    (pair,) = build(tmp_path, "rlcd", rows, *MODEL)
    assert pair["prompt"] == whole
    data = {"data_files": str(tmp_path / "out.jsonl"), "cache_dir": str(tmp_path / "cache")}
    loaded = datasets.load_dataset("json", **data)["train"]
    assert loaded.column_names == ["prompt", "chosen", "rejected", "meta"]


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `prompt`.*did you mean `promt`"):
        build(tmp_path, "rlcd", [{"promt": "p"}], *MODEL)


def test_the_recipe_has_the_paper_s_sampler():
    options = parse(Options, ["--config", str(ROOT / "recipes/rlcd/build.yaml")], "alignment")
    assert (options.format, options.label, options.attribute) == (
        *("complete", "provenance", "harmlessness"),
    )
    assert (options.temperature, options.max_tokens, options.resamples) == (1.0, 300, 5)


def script(index: int, body: Body) -> Answer:
    """A base model that fails now and then, or log-probs of letters where they are asked for."""
    words = last_words(body)
    if body.get("logprobs"):
        first = _is_positive(sections(words)["answer_A"])
        top = {"A": -0.1, "B": -2.4} if first else {"A": -2.4, "B": -0.1}
        return Answer("A", choice={"logprobs": {"top_logprobs": [top]}})
    return Answer("" if body["seed"] % 4 == 0 else continuation(words, 0))


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_its_pairs_train(tmp_path: Path):
    prompts = [{"prompt": HH.format(f"question {index}")} for index in range(24)]
    made = survives_a_kill(
        *(tmp_path, script, "build", "rlcd", "--input", write(tmp_path / "in.jsonl", prompts)),
        *("--label", "agree", "--labels-by", "top_logprobs"),
        *("--judge-model", "judge", "--judge-url", "{url}"),
        models=2,
    )
    assert len(made) == 24
    for objective in ("apo", "cpo", "nca"):
        trains(tmp_path, tmp_path / "killed" / "out.jsonl", objective)


@pytest.mark.slow
def test_a_real_server_answers_as_a_chat_model(tmp_path: Path, yes_or_no: Served):
    """It draws one of two texts, so that rows end as pairs or as identical sides."""
    prompts = [{"prompt": f"question {index}"} for index in range(12)]
    made = builds_on(
        *(yes_or_no, tmp_path, "build", "rlcd", "--format", "chat", "--max-tokens", 8),
        *("--input", write(tmp_path / "in.jsonl", prompts)),
    )
    told = report(tmp_path)
    assert told["kept"] == len(made)
    assert told["kept"] + told["dropped"].get("identical", 0) == len(prompts)
    assert {row["chosen"] for row in made} <= {YES, NO}
