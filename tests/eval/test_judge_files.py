"""A judge is one YAML: what it may say, where it is found, what is wrong with it in one line."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.llm.ledger import Ledger
from alignment.llm.protocol import Reply, Request
from eval.judge import RATING_FIELDS, Judge, RewardJudge, compare
from eval.judge_files import JUDGES, JudgeOptions, open_judge, read_judge
from eval.verdicts import Preference, Rating, Ratings, TokenPreference, read_letter

PROMPT = "{{ prompt }} {{ first }} {{ second }}"
VERDICTS = ("letter", "tokens", "rating", "ratings", "reward")


def says_a(request: Request) -> Reply:
    return Reply("A", "length", top_logprobs=({"A": -0.1, "B": -2.4},))


def last_character(reply: Reply) -> Preference:
    """A parser of one's own."""
    return Preference(float(reply.text[-1] == "1"))


def share(reply: Reply) -> float:
    """A parser that returns no preference."""
    return 0.75


def marks(reply: Reply) -> tuple[float, ...]:
    """A parser of several ratings."""
    return (1.0, 2.0)


def write(folder: Path, text: str) -> str:
    (folder / "mine.txt").write_text(PROMPT)
    path = folder / "judge.yaml"
    path.write_text(text)
    return str(path)


def opened(folder: Path, text: str, **options: Any) -> Judge[Any] | RewardJudge:
    options.setdefault("judge_model", f"program:{__name__}.says_a")
    options["judge"] = write(folder, text)
    return open_judge(JudgeOptions(**options), Ledger(), verdicts=VERDICTS)


@pytest.mark.parametrize("path", sorted(JUDGES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_judge_that_comes_along_can_be_read(path: Path):
    made = read_judge(path.stem)
    assert made == read_judge(path)
    assert made.verdict == "reward" or (made.prompt is not None and made.prompt.is_file())
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        ("verdict: letter", read_letter),
        ("verdict: tokens\ntokens: [m, M]", TokenPreference(("m", "M"))),
        ("verdict: tokens\nrequire_logprobs: true", TokenPreference(("A", "B"), required=True)),
        ("verdict: rating\nscale: [1, 5]", Rating((1.0, 5.0))),
        ("verdict: ratings", Ratings((1.0, 10.0))),
        (f"verdict: letter\nparser: {__name__}.last_character", last_character),
    ],
)
def test_the_verdict_type_says_how_a_reply_is_read(tmp_path: Path, text: str, reader: object):
    made = opened(tmp_path, f"prompt: mine.txt\n{text}\n")
    assert isinstance(made, Judge)
    assert (
        made.read.__name__ if callable(reader) and hasattr(reader, "__name__") else made.read
    ) == getattr(reader, "__name__", reader)
    assert made.template.path == tmp_path / "mine.txt"


def test_log_probs_are_asked_for_where_they_are_read_and_one_token_is_enough(tmp_path: Path):
    """P(A) = exp(-.1) / (exp(-.1) + exp(-2.4)) = 1 / (1 + exp(-2.3)) = .9089; order cancels it."""
    made = opened(tmp_path, "prompt: mine.txt\nverdict: tokens\nmax_tokens: 1\n")
    assert isinstance(made, Judge)
    assert made.sampling.settings() == {"temperature": 0.0, "max_tokens": 1, "top_logprobs": 5}
    compared = asyncio.run(compare(made, "p", "one", "two", first="answer"))
    assert compared.score == pytest.approx(0.9089, abs=1e-4)


def test_the_model_may_stand_in_the_file_and_the_command_line_goes_before_it(tmp_path: Path):
    text = f"prompt: mine.txt\nverdict: letter\nmodel: program:{__name__}.says_a\n"
    assert opened(tmp_path, text, judge_model=None).llm.model == f"program:{__name__}.says_a"
    other = f"program:{__name__}.last_character"
    assert opened(tmp_path, text, judge_model=other).llm.model == other


def test_another_prompt_file_takes_the_place_of_its_own(tmp_path: Path):
    other = tmp_path / "other.txt"
    other.write_text("{{ first }} or {{ second }}?")
    made = opened(tmp_path, "prompt: mine.txt\nverdict: letter\n", judge_prompt=other)
    assert isinstance(made, Judge)
    assert made.template.path == other


def test_a_reward_model_is_a_judge_without_prompt(tmp_path: Path):
    assert isinstance(opened(tmp_path, "verdict: reward\n"), RewardJudge)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: mine.txt\nverdict: pairs", r"judge\.yaml: `verdict` expects one of letter"),
        ("prompt: mine.txt\nverdikt: letter", r"unknown key .*`verdikt`; did you mean `verdict`"),
        ("verdict: letter", r"judge\.yaml: a judge with `verdict: letter` needs a `prompt`"),
        ("prompt: mine.txt\nverdict: reward", r"`verdict: reward` has no `prompt`"),
        ("prompt: mine.txt", r"needs `--verdict`"),
        ("prompt: mine.txt\nverdict: tokens\ntokens: [A]", r"`tokens` takes two values, got 1"),
        ("prompt: none.txt\nverdict: letter", r"cannot read the prompt file .*none\.txt"),
        ("prompt: mine.txt\nverdict: letter\nparser: nowhere.read", r"no parser `nowhere\.read`"),
    ],
)
def test_what_is_wrong_with_a_judge_is_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path, text + "\n")
    assert "\n" not in str(caught.value)


def test_a_prompt_that_shows_what_the_command_lacks_is_refused(tmp_path: Path):
    options = JudgeOptions(judge=write(tmp_path, "prompt: mine.txt\nverdict: ratings\n"))
    options.judge_model = f"program:{__name__}.says_a"
    with pytest.raises(UserError, match=r"unknown field in .*`first`"):
        open_judge(options, Ledger(), RATING_FIELDS, ("ratings",))


def test_a_judge_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(UserError, match=r"no judge `pairwize`.*did you mean `pairwise`"):
        read_judge("pairwize")


def test_a_judge_without_a_model_is_told():
    with pytest.raises(UserError, match="no judge: give `--judge-model`"):
        open_judge(JudgeOptions(), Ledger())
    with pytest.raises(UserError, match="a reward model reads no prompt file"):
        open_judge(
            JudgeOptions(judge="reward", judge_model="x", judge_prompt=Path("p.txt")), Ledger()
        )


def never(request: Request) -> str:
    raise AssertionError("a model was asked")


ROW = {
    **{"prompt": "p", "response": "a", "chosen": "a", "rejected": "b", "baseline_output": "b"},
    **{"question_id": 1, "category": "stem", "turns": ["q", "r"]},
}
PAIRS = "letter or tokens or reward"


@pytest.mark.parametrize(
    ("words", "verdict", "message"),
    [
        (("eval", "winrate", "--baseline", "rows.jsonl", "--prompts"), "rating", PAIRS),
        (("eval", "alpaca_eval", "--prompts"), "ratings", PAIRS),
        (("eval", "zero_or_down", "--pairs"), "rating", PAIRS),
        (("eval", "mt_bench", "--questions"), "letter", "rating"),
        (("build", "on_policy_judge", "--input"), "rating", PAIRS),
        (("build", "flame", "--input"), "ratings", PAIRS),
    ],
)
def test_a_verdict_that_a_command_has_no_use_for_is_told_before_any_call(
    tmp_path: Path, words: tuple[str, ...], verdict: str, message: str
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    judge = write(tmp_path, f"prompt: mine.txt\nverdict: {verdict}\n")
    model = f"program:{__name__}.never"
    named = ("--judge", judge, "--judge-model", model, "--model", model)
    told = rf"judge\.yaml: .*`verdict: {verdict}`; give a judge whose `verdict` is {message}$"
    with pytest.raises(UserError, match=told):
        dispatch([*words, str(rows), "--output", str(tmp_path / "out.jsonl"), *named])


def says_b(request: Request) -> str:
    return "B"


@pytest.mark.parametrize(
    ("verdict", "parser", "message"),
    [
        ("letter", "share", "`share` returned a float, .*asks for Preference;"),
        ("rating", "last_character", "returned a Preference, .*asks for float or int;"),
        ("ratings", "share", "returned a float, .*asks for tuple or list;"),
    ],
)
def test_a_parser_that_returns_another_type_ends_the_job(
    tmp_path: Path, verdict: str, parser: str, message: str
):
    with pytest.raises(UserError, match=message):
        asyncio.run(parsed(tmp_path, verdict, parser))


@pytest.mark.parametrize(
    ("verdict", "parser"), [("letter", "last_character"), ("rating", "share"), ("ratings", "marks")]
)
def test_a_parser_may_return_what_its_verdict_type_does(tmp_path: Path, verdict: str, parser: str):
    assert asyncio.run(parsed(tmp_path, verdict, parser)) == globals()[parser](Reply("B"))


async def parsed(folder: Path, verdict: str, parser: str) -> Any:
    text = f"prompt: mine.txt\nverdict: {verdict}\nparser: {__name__}.{parser}\n"
    made = opened(folder, text, judge_model=f"program:{__name__}.says_b")
    assert isinstance(made, Judge)
    found, _ = await made.ask(prompt="p", first="a", second="b")
    return found
