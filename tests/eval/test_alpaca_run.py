"""A run from prompts to numbers: weighted and hard verdicts, orders, bundles, official prompts."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Reply, Request
from eval import official_prompt
from eval.alpaca_judge import saw_swapped
from eval.official_prompt import ChatMLPrompt
from eval.verdicts import weigh
from tests.eval.shared import MODELS, Published

CHATML = """<|im_start|>system
You rank.
<|im_end|>
<|im_start|>user
Task: {instruction}
m: {output_1}
M: {output_2}
<|im_end|>"""
BASELINE = "four words of baseline"


def policy(request: Request) -> str:
    """Repeats the number in the prompt as often as it says; the last one echoes the baseline."""
    number = int(as_text(request.prompt).split()[-1])
    return BASELINE if number == 9 else " ".join([f"w{number}"] * (number + 1))


def share(first: str, second: str) -> float:
    """Likes words, and whatever comes first a little."""
    return 1 / (1 + math.exp(-0.5 * (len(first.split()) - len(second.split())) - 0.2))


def shown(request: Request) -> tuple[str, str]:
    text = as_text(request.prompt)
    if "Task:" in text:  # the layout of `CHATML`
        first, _, second = text.partition("\nm: ")[2].partition("\nM: ")
        return first, second
    parts = sections(text)
    return parts["answer_A"], parts["answer_B"]


def weighted(request: Request) -> Reply:
    value = share(*shown(request))
    names = ("m", "M") if "Task:" in as_text(request.prompt) else ("A", "B")
    logprobs = {names[0]: math.log(0.9 * value), names[1]: math.log(0.9 * (1 - value)), "x": -3.0}
    return Reply(names[0], "length", top_logprobs=(logprobs,))


def hard(request: Request) -> str:
    return "A" if share(*shown(request)) > 0.5 else "B"


def babbling(request: Request) -> str:
    return "Both are fine."


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"index": i, "instruction": f"say {i}", "baseline_output": BASELINE} for i in range(10)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(prompts: Path, *words: object, judge: str = "weighted") -> dict[str, Any]:
    output = prompts.parent / "out"
    command = ["--prompts", prompts, "--output", output, "--resamples", "20"]
    if "--answers" not in words:
        command += ["--model", f"program:{__name__}.policy"]
    command += ["--judge-model", f"program:{__name__}.{judge}", *words]
    dispatch(["eval", "alpaca_eval", *map(str, command)])
    return json.loads((output / "results.json").read_text())


def test_both_orders_are_averaged_and_a_draw_is_not_judged(prompts: Path):
    """Answer i has i + 1 words, the baseline 4; the judge's taste for the first place cancels."""
    made = run(prompts)
    scores = []
    for number in range(9):
        mine = " ".join(["w"] * (number + 1))
        scores.append((share(mine, BASELINE) + 1 - share(BASELINE, mine)) / 2)
    scores.append(0.5)
    assert made["win_rate"] == pytest.approx(10 * sum(scores))
    counts = ("n_total", "n_wins", "n_wins_base", "n_draws", "unjudged", "identical")
    assert [made[name] for name in counts] == [10, 5, 3, 2, 0, 1]
    assert (made["weighted_verdicts"], made["hard_verdicts"]) == (18, 0)
    assert made["position_consistency"] == pytest.approx(8 / 9)
    assert (made["judge"]["order"], made["judge"]["official_prompt"]) == ("both", False)
    assert made["lc_difficulty"] == "left out: the prompts have none"


def test_the_published_order_asks_once_in_the_order_drawn(prompts: Path):
    made = run(prompts, "--order", "published")
    rows = [row for _, row in read_rows(prompts.parent / "out" / "verdicts.jsonl")]
    for row in rows[:9]:
        (vote,) = row["votes"]
        assert (vote["first"] == "answer") == saw_swapped(row["instruction"])
        assert row["preference"] == pytest.approx(1 + vote["preference"])
    assert (made["weighted_verdicts"], made["position_consistency"]) == (9, None)


def test_a_judge_without_log_probs_gives_hard_verdicts_and_the_report_says_so(
    prompts: Path, capsys: pytest.CaptureFixture[str]
):
    made = run(prompts, judge="hard")
    assert (made["weighted_verdicts"], made["hard_verdicts"]) == (0, 18)
    told = capsys.readouterr().err
    assert "18 of 18 verdicts are words, not probabilities" in told
    assert "the judge prompt is not AlpacaEval's" in told
    with pytest.raises(UserError, match="returned no log-probs, and this one requires them"):
        run(prompts, "--require-logprobs", "--overwrite", judge="hard")


def test_verdicts_that_cannot_be_read_are_refused_with_their_count(prompts: Path):
    with pytest.raises(UserError, match=r"only 1 of 10 prompts are judged .* 9 without a verdict"):
        run(prompts, judge="babbling")
    made = run(prompts, "--allow-missing", "--resume", judge="babbling")
    assert (made["n_total"], made["unjudged"], made["faults"]) == (1, 9, {"unparseable": 18})


def test_a_judge_that_says_nothing_readable_is_told_with_its_words(prompts: Path):
    answers = prompts.parent / "answers.jsonl"
    answers.write_text('{"index": 0, "output": "a"}\n')
    with pytest.raises(UserError, match=r"none of 2 verdicts can be read.*`Both are fine\.`"):
        run(prompts, "--answers", answers, judge="babbling")


def test_a_reference_in_the_folder_of_the_run_is_kept(prompts: Path):
    run(prompts)
    reference = prompts.parent / "out" / "reference.jsonl"
    row = {"index": 0, "std_delta_len": 1.0, "instruction_difficulty": 0.0, "preference": 0.2}
    reference.write_text(json.dumps(row) + "\n")
    made = run(prompts, "--reference", reference, "--resume")
    assert made["lc_note"] is None
    assert json.loads(reference.read_text()) == row


def test_a_bundle_and_its_verdicts_give_the_numbers_again(
    prompts: Path, capsys: pytest.CaptureFixture[str]
):
    made = run(prompts)
    capsys.readouterr()
    out = prompts.parent / "out"
    dispatch(["eval", "alpaca_eval", "--bundle", str(out), "--json", "-"])
    assert json.loads(capsys.readouterr().out) == made
    words = ["--annotations", str(out / "verdicts.jsonl"), "--prompts", str(prompts)]
    dispatch(["eval", "alpaca_eval", *words, "--resamples", "20", "--json", "-"])
    again = json.loads(capsys.readouterr().out)
    assert {name: made[name] for name in again} == again
    (out / "verdicts.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was changed after the run"):
        dispatch(["eval", "alpaca_eval", "--bundle", str(out)])


def test_going_on_asks_nothing_twice(prompts: Path, capsys: pytest.CaptureFixture[str]):
    first = run(prompts)
    asked = (prompts.parent / "out" / "verdicts.jsonl").read_text()
    assert run(prompts, "--resume", judge="weighted") == first
    assert (prompts.parent / "out" / "verdicts.jsonl").read_text() == asked


def test_a_prompt_in_the_official_layout_is_asked_as_its_messages(
    prompts: Path, monkeypatch: pytest.MonkeyPatch
):
    file = prompts.parent / "judge.txt"
    file.write_text(CHATML)
    made = run(prompts, "--judge-prompt", file)
    assert made["weighted_verdicts"] == 18
    assert made["judge"]["official_prompt"] is False
    digest = hashlib.sha256(CHATML.encode()).hexdigest()[:16]
    monkeypatch.setattr(official_prompt, "OFFICIAL_DIGEST", digest)
    assert run(prompts, "--judge-prompt", file, "--overwrite")["judge"]["official_prompt"] is True


def test_what_an_answer_says_is_no_field_of_the_official_layout(tmp_path: Path):
    file = tmp_path / "judge.txt"
    file.write_text(CHATML)
    system, user = ChatMLPrompt(file).user_message(
        prompt="p", first="{output_2} {instruction}", second="second"
    )
    assert system == {"role": "system", "content": "You rank."}
    assert user["content"] == "Task: p\nm: {output_2} {instruction}\nM: second"
    file.write_text(CHATML.replace("{output_2}", ""))
    with pytest.raises(UserError, match="lacking: output_2"):
        ChatMLPrompt(file)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"index": 12, "output": "a"}], "its prompt is foreign to"),
        ([{"index": 1, "output": "a"}] * 2, "its prompt is answered before, of"),
        ([{"index": 1, "answer": "a"}], "no text in `output`; there is index, answer"),
        ([], "the file holds no answers"),
    ],
)
def test_answers_that_do_not_fit_are_refused_before_anything_is_asked(
    prompts: Path, rows: list[dict[str, Any]], message: str
):
    answers = prompts.parent / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        run(prompts, "--answers", answers, judge="babbling")


def test_a_baseline_without_answers_is_refused(prompts: Path):
    prompts.write_text('{"index": 0, "instruction": "say 0"}\n')
    with pytest.raises(UserError, match="prompt 0 has no `baseline_output`, which judging needs"):
        run(prompts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "p.jsonl"], "give one of `--annotations FILE` and `--bundle FOLDER`"),
        (["--annotations", "a.jsonl"], "`--prompts` is needed"),
        (["--output", "o", "--prompts", "p"], "give `--model` to be asked or `--answers`"),
    ],
)
def test_doors_are_told_apart(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        dispatch(["eval", "alpaca_eval", *words])


@pytest.mark.parametrize("model", MODELS)
def test_published_orders_and_preferences_are_replayed(shared_dir: Path, model: str):
    """The order of every row, and the preference of every row with log-probs that is no draw."""
    published = Published.read(shared_dir)
    for _, row in read_rows(published.annotations(model)):
        text = published.benchmark.prompts[row["index"]].text
        assert saw_swapped(str(text)) == row["judge_saw_swapped"]
        if row["judge_top_logprobs"] and row["preference"] not in (0, 1.5):
            first = weigh(row["judge_top_logprobs"], official_prompt.TOKENS)
            assert first is not None
            preference = 1 + first if row["judge_saw_swapped"] else 2 - first
            assert preference == pytest.approx(row["preference"], abs=1e-6)
