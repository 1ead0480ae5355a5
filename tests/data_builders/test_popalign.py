"""PopAlign: six strategies, quotas, answers made elsewhere, and the judge's look at a sample."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment.cli import UserError, parse
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_messages, as_text, sections
from alignment.llm.protocol import CallError, Reply, Request
from data_builders.popalign import Check, Options, contrast_check
from data_builders.strategies import STRATEGIES, read_wording
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.running import build, reasons, rejects, report, write
from tests.llm.real_server import Served
from tests.llm.server import Answer, Body, last_words

SAID = read_wording("general")
ROOT = Path(__file__).parents[2]


def generator(request: Request) -> str | Reply:
    """Does as its prompt says."""
    words = as_text(request.prompt)
    if "refuse" in words and SAID.prefix.negative in words:
        raise CallError("refused", "I would rather not")
    return said(words)


def said(words: str) -> str:
    if "## Thought" in words:
        kind = "good" if SAID.elicitive.positive in words else "bad"
        marker = "" if kind == "bad" and "no marker" in words else "\n\n## Response\n"
        return f"## Thought\nHow a {kind} answer is made.{marker}A {kind} planned answer."
    if SAID.refine in words:
        return "A refined answer."
    kinds = {"prefixed": SAID.prefix, "shown": SAID.demonstrations[0][1:]}
    for name, (positive, negative) in kinds.items():
        if positive in words or negative in words:
            return f"A {'good' if positive in words else 'bad'} {name} answer."
    return "A plain answer."


def larger(request: Request) -> str:
    return "The answer of a large model."


def smaller(request: Request) -> str:
    return "The answer of a small model."


def verdict(text: str) -> str:
    """Prefers good to bad, says nothing of refined answers, and finds all else alike."""
    shown = sections(text)
    first, second = shown["answer_A"], shown["answer_B"]
    if "refined" in first + second:
        return "Well."
    return f"Verdict: {'A' if 'good' in first else 'B' if 'good' in second else 'tie'}"


def judge(request: Request) -> str:
    return verdict(as_text(request.prompt))


def program(name: str) -> str:
    return f"program:{__name__}.{name}"


MODEL = ("--model", program("generator"))
JUDGE = ("--judge-model", program("judge"))
MODELS = ("--larger", program("larger"), "--smaller", program("smaller"))


def made(folder: Path, rows: list[dict[str, Any]], *argv: object) -> list[dict[str, Any]]:
    return build(folder, "popalign", rows, *argv)


def questions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {index}"} for index in range(count)]


@pytest.mark.parametrize(
    ("strategy", "chosen", "rejected"),
    [
        ("prefix", "A good prefixed answer.", "A bad prefixed answer."),
        ("demonstration", "A good shown answer.", "A bad shown answer."),
        ("elicitive", "A good planned answer.", "A bad planned answer."),
        ("parameter_count", "The answer of a large model.", "The answer of a small model."),
        ("refine", "A refined answer.", "A plain answer."),
    ],
)
def test_a_strategy_contrasts_two_answers_to_the_plain_prompt(
    tmp_path: Path, strategy: str, chosen: str, rejected: str
):
    argv = (*MODEL, *MODELS, *JUDGE, "--strategies", strategy)
    (pair,) = made(tmp_path, [{"prompt": "Why?"}], *argv)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("Why?", chosen, rejected)
    meta = pair["meta"]
    assert (meta["builder"], meta["version"], meta["strategy"]) == ("popalign", "1", strategy)
    assert meta["on_policy"] == {"chosen": False, "rejected": strategy == "refine"}
    assert meta["sampling"] == {"temperature": 1.0, "max_tokens": 2048, "seed": 0}


def generation_prompts(folder: Path, prompt: Any, strategy: str) -> list[list[dict[str, Any]]]:
    (pair,) = made(folder, [{"prompt": prompt}], *MODEL, *JUDGE, "--strategies", strategy)
    assert pair["prompt"] == prompt
    sides = pair["meta"]["generation_prompt"]
    return [sides["chosen"], sides["rejected"]]


PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]


def test_a_prefix_stands_before_the_last_turn(tmp_path: Path):
    for messages, prefix in zip(
        generation_prompts(tmp_path, PROMPT, "prefix"), SAID.prefix, strict=True
    ):
        assert messages[:-1] == PROMPT[:-1]
        assert messages[-1] == {"role": "user", "content": f"{prefix}\n\nWhy?"}


def test_demonstrations_stand_between_system_message_and_conversation(tmp_path: Path):
    chosen, rejected = generation_prompts(tmp_path, PROMPT, "demonstration")
    shown = len(SAID.demonstrations)
    assert shown == 3
    for messages, side in ((chosen, 1), (rejected, 2)):
        assert (messages[0], messages[1 + 2 * shown :]) == (PROMPT[0], PROMPT[1:])
        shots = messages[1 : 1 + 2 * shown]
        assert [shot["role"] for shot in shots] == ["user", "assistant"] * shown
        assert [shot["content"] for shot in shots[1::2]] == [d[side] for d in SAID.demonstrations]
    assert [m for m in chosen if m["role"] == "user"] == [
        m for m in rejected if m["role"] == "user"
    ]


def test_an_elicitive_prompt_shows_the_task_and_names_the_kind(tmp_path: Path):
    for messages, kind in zip(
        generation_prompts(tmp_path, PROMPT, "elicitive"), SAID.elicitive, strict=True
    ):
        assert sections(messages[-1]["content"]) == {"task": "Why?"}
        assert f"Write {kind}." in messages[-1]["content"]


def test_a_refined_answer_is_asked_for_after_the_first_one(tmp_path: Path):
    (pair,) = made(tmp_path, [{"prompt": PROMPT}], *MODEL, *JUDGE, "--strategies", "refine")
    asked = pair["meta"]["generation_prompt"]
    assert asked["rejected"] is None
    assert asked["chosen"] == [
        *PROMPT,
        {"role": "assistant", "content": "A plain answer."},
        {"role": "user", "content": SAID.refine},
    ]


def test_the_wordings_have_no_side_in_common():
    for name in ("general", "helpful_harmless"):
        wording = read_wording(name)
        assert wording.prefix.positive != wording.prefix.negative
        assert wording.elicitive.positive != wording.elicitive.negative
        assert len(wording.demonstrations) == 3


def test_all_strategies_are_pooled_and_a_side_that_fails_costs_its_pair_alone(tmp_path: Path):
    rows = [{"prompt": "Why?"}, {"prompt": "no marker"}, {"prompt": "refuse"}, {"prompt": ""}]
    argv = (*MODEL, *MODELS, "--strategies", *STRATEGIES[:4])
    pairs = made(tmp_path, rows, *argv)
    strategies = [(pair["prompt"], pair["meta"]["strategy"]) for pair in pairs]
    assert strategies == [
        *[("Why?", strategy) for strategy in STRATEGIES[:4]],
        *[("no marker", s) for s in ("prefix", "demonstration", "parameter_count")],
        *[("refuse", s) for s in ("demonstration", "elicitive", "parameter_count")],
    ]
    lost = [(row["reason"], row.get("strategy")) for row in rejects(tmp_path)]
    assert lost == [("parse_failed", "elicitive"), ("refused", "prefix"), ("no_prompt", None)]
    told = report(tmp_path)
    assert (told["kept"], told["written"]) == (3, 10)
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)
    assert sum(told["partial"].values()) == 2


def test_quotas_bound_the_prompts_of_a_strategy(tmp_path: Path):
    argv = ("--quotas", '{"prefix": 3, "elicitive": 20}', "--strategies", "prefix", "elicitive")
    pairs = made(tmp_path, questions(20), *MODEL, *argv)
    prefixed = [p["prompt"] for p in pairs if p["meta"]["strategy"] == "prefix"]
    assert (len(prefixed), len(pairs)) == (3, 23)
    assert prefixed != [f"question {index}" for index in range(3)]  # drawn, not the first
    few = ("--quotas", '{"prefix": 5}', "--strategies", "prefix")
    assert len(made(tmp_path / "few", questions(20), *MODEL, *few)) == 5
    assert reasons(tmp_path / "few") == ["over_quota"] * 15


def test_answers_made_elsewhere_are_read_from_files(tmp_path: Path):
    """The files are as `alignment generate` writes them; no model is asked."""
    answers = {
        "larger": [
            {"prompt": "a", "response": "A of the larger", "model": "34B"},
            {"prompt": "b", "response": "B of", "model": "34B", "finish_reason": "length"},
            {"prompt": "a", "response": "another", "model": "34B"},
            {"prompt": "c", "response": "C", "model": "34B"},
        ],
        "smaller": [
            {"prompt": "b", "response": "B of the smaller", "model": "6B"},
            {"prompt": "a ", "response": "A of the smaller", "model": "6B"},
        ],
    }
    files = [
        word
        for side, rows in answers.items()
        for word in (f"--{side}", write(tmp_path / f"{side}.jsonl", rows))
    ]
    rows = [{"prompt": prompt} for prompt in "abc"]
    (pair,) = made(tmp_path, rows, "--strategies", "parameter_count", *files)
    assert (pair["chosen"], pair["rejected"]) == ("A of the larger", "A of the smaller")
    assert pair["meta"]["models"] == {"chosen": "34B", "rejected": "6B"}
    assert reasons(tmp_path) == ["truncated", "unmatched"]
    assert report(tmp_path)["usage"] == {}


def test_the_judge_s_agreement_is_reported_by_strategy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It knows good from bad, finds the models alike (one half), and cannot say of `refine`."""
    strategies = ("prefix", "parameter_count", "refine")
    argv = (*MODEL, *MODELS, *JUDGE, "--check", "4", "--strategies", *strategies)
    pairs = made(tmp_path, questions(10), *argv)
    assert len(pairs) == 30
    expected = {
        "prefix": Check(10, 4, 0, 1.0),
        "parameter_count": Check(10, 4, 0, 0.5),
        "refine": Check(10, 0, 4, None),
    }
    assert contrast_check(tmp_path / "out.jsonl") == expected
    assert report(tmp_path)["contrast_check"] == {k: v._asdict() for k, v in expected.items()}
    told = capsys.readouterr().out
    assert "prefix: 10 pairs; the judge prefers chosen in 100.0% of 4 checked" in told
    assert "refine: 10 pairs, 4 could not be read" in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--strategies", "refine", *MODEL), "it needs a contrast check"),
        (("--strategies", "refine", *MODEL, *JUDGE, "--check", "0"), "it needs a contrast check"),
        (("--strategies", "prefix"), "the strategy `prefix` needs `model`: a model$"),
        (("--strategies", "leaderboard"), "needs `higher`: a model, or a file of its answers"),
        ((*MODEL, "--strategies", "prefx"), "expects"),
        ((*MODEL, "--strategies", "prefix", "prefix"), "each once"),
        ((*MODEL, "--strategies"), "`strategies` is empty"),
        ((*MODEL, "--quotas", '{"refine": 3}'), "`quotas` maps strategies"),
        ((*MODEL, "--quotas", '{"prefix": 0}'), "`quotas` maps strategies"),
        ((*MODEL, "--wording", "genral"), "unknown wording `genral`; did you mean `general`"),
        (("--strategies", "leaderboard", "--higher", "no.jsonl", "--lower", "x"), "no such file"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(tmp_path: Path, argv: tuple[str, ...], told: str):
    with pytest.raises(UserError, match=told):
        made(tmp_path, questions(1), *argv)


@pytest.mark.parametrize("text", ["prefix: 3", "prefix: {positive: x}", "demonstrations: [3]"])
def test_a_wording_that_lacks_something_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="a wording has `prefix` and `elicitive`"):
        read_wording(str(path))


def test_a_run_is_the_same_twice_and_datasets_reads_it(tmp_path: Path):
    for name in ("a", "b"):
        argv = (*MODEL, *MODELS, *JUDGE, "--strategies", *STRATEGIES[:4])
        made(tmp_path / name, questions(6), *argv)
    assert (tmp_path / "a/out.jsonl").read_bytes() == (tmp_path / "b/out.jsonl").read_bytes()
    data = {"data_files": str(tmp_path / "a/out.jsonl"), "cache_dir": str(tmp_path / "cache")}
    loaded = datasets.load_dataset("json", **data)["train"]
    assert loaded.column_names == ["prompt", "chosen", "rejected", "meta"]
    assert len(loaded) == 24


def test_the_recipe_leaves_out_refine():
    path = ROOT / "recipes/popalign/build.yaml"
    options = parse(Options, ["--config", str(path)], "alignment build popalign")
    assert options.strategies == STRATEGIES[:5]
    assert options.check == 50


def script(index: int, body: Body) -> Answer:
    """The judge's prompt has sections of answers; one in ten elicited answers has no marker."""
    words = last_words(body)
    if "answer_A" in sections(words):
        return Answer(verdict(words))
    everything = "\n".join(message["content"] for message in body["messages"])
    text = said(everything)
    if "## Thought" in words and body["seed"] % 10 == 0:
        text = "I have no plan."
    return Answer(text)


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice_and_its_pairs_train(tmp_path: Path):
    made = survives_a_kill(
        *(tmp_path, script, "build", "popalign"),
        *("--input", write(tmp_path / "in.jsonl", questions(8)), "--check", 3),
        *("--strategies", "prefix", "demonstration", "elicitive", "refine"),
        *("--judge-model", "judge", "--judge-url", "{url}"),
        models=2,
    )
    assert {row["meta"]["strategy"] for row in made} == {*STRATEGIES[:3], "refine"}
    trains(tmp_path, tmp_path / "killed" / "out.jsonl", "dpo", kwargs={"beta": 0.01})


@pytest.mark.slow
def test_a_real_server_answers_under_every_prompt(tmp_path: Path, yes_or_no: Served):
    """It draws one of two texts, so that a contrast ends as a pair or as identical sides."""
    made = builds_on(
        *(yes_or_no, tmp_path, "build", "popalign", "--max-tokens", 8),
        *("--input", write(tmp_path / "in.jsonl", questions(6))),
    )
    elicited = [row for row in made if row["meta"]["strategy"] == "elicitive"]
    assert {row["chosen"] for row in elicited} <= {"Yes.", "No."}
    told = report(tmp_path)
    rows = [row for _, row in read_rows(tmp_path / "in.jsonl")]
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)
    assert told["written"] == len(made) > 0


def test_a_prompt_of_more_than_text_has_no_room_for_words(tmp_path: Path):
    parts = [{"type": "text", "text": "Why?"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?"},
        {"prompt": [{"role": "user", "content": parts}]},
    ]
    assert len(made(tmp_path, rows, *MODEL, "--strategies", "prefix", "elicitive")) == 2
    assert reasons(tmp_path) == ["bad_type"]


def test_messages_are_put_to_models_as_they_are(tmp_path: Path):
    (pair,) = made(tmp_path, [{"prompt": PROMPT}], *MODELS, "--strategies", "parameter_count")
    assert pair["chosen"] == [{"role": "assistant", "content": larger(Request("chat", PROMPT))}]
    assert as_messages(pair["prompt"]) == PROMPT
