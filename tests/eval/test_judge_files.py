"""A judge is one YAML: what it may say, where it is found, what is wrong with it in one line."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.ledger import Ledger
from alignment.llm.protocol import Reply, Request
from eval.judge import RATING_FIELDS, Judge, RewardJudge, compare
from eval.judge_files import JUDGES, JudgeOptions, open_judge, read_judge
from eval.verdicts import Preference, Rating, Ratings, TokenPreference, read_letter

PROMPT = "{{ prompt }} {{ first }} {{ second }}"


def says_a(request: Request) -> Reply:
    return Reply("A", "length", top_logprobs=({"A": -0.1, "B": -2.4},))


def last_character(reply: Reply) -> Preference:
    """A parser of one's own."""
    return Preference(float(reply.text[-1] == "1"))


def write(folder: Path, text: str) -> str:
    (folder / "mine.txt").write_text(PROMPT)
    path = folder / "judge.yaml"
    path.write_text(text)
    return str(path)


def opened(folder: Path, text: str, **options: Any) -> Judge[Any] | RewardJudge:
    options.setdefault("judge_model", f"program:{__name__}.says_a")
    return open_judge(JudgeOptions(judge=write(folder, text), **options), Ledger())


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
        open_judge(options, Ledger(), RATING_FIELDS)


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
