"""The advice follows from who wins: the chosen answers or fresh samples."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Reply, Request

ASKED = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "a longer answer"}


def policy(request: Request) -> str:
    return "seven c"


def judge(request: Request) -> str:
    """Prefers the longer answer."""
    parts = sections(as_text(request.prompt))
    first, second = len(parts["answer_A"]), len(parts["answer_B"])
    return "Verdict: A" if first > second else "Verdict: B" if second > first else "Verdict: tie"


def diagnose(folder: Path, chosen: list[str], *argv: str) -> dict[str, Any]:
    pairs = folder / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": text, "rejected": ""} for i, text in enumerate(chosen)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "zero_or_down", "--pairs", str(pairs), "--output", str(folder / "out")]
    command += ["--model", f"program:{__name__}.policy", "--judge-model"]
    dispatch([*command, f"program:{__name__}.judge", *argv])
    return json.loads((folder / "out" / "results.json").read_text())


def test_better_chosen_answers_ask_for_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = diagnose(tmp_path, ["a longer answer"] * 20)
    assert (results["win_rate"], results["advice"], results["certain"]) == (1.0, "zero", True)
    assert "`variant: zero`; the choice is yours" in capsys.readouterr().out


def test_worse_chosen_answers_ask_for_down(tmp_path: Path):
    results = diagnose(tmp_path, ["a"] * 20)
    assert (results["win_rate"], results["advice"], results["certain"]) == (0.0, "down", True)


def test_an_interval_around_one_half_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = diagnose(tmp_path, ["a longer answer"] * 11 + ["a"] * 9)
    assert (results["advice"], results["certain"]) == ("zero", False)
    assert "the interval holds 0.5" in capsys.readouterr().out


def test_a_drawn_part_of_the_pairs_is_looked_at(tmp_path: Path):
    assert diagnose(tmp_path, ["a longer answer"] * 20, "--prompts", "5")["n_prompts"] == 5


def test_a_pair_whose_sample_is_refused_is_unjudged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two of 20 have no sample."""

    def refusing(request: Request) -> Reply | str:
        prim = as_text(request.prompt) in ("p0", "p1")
        return Reply("No.", "refusal") if prim else "seven c"

    monkeypatch.setattr(f"{__name__}.policy", refusing)
    with pytest.raises(UserError, match=r"only 18 of 20 .*\(2 without an answer\)") as caught:
        diagnose(tmp_path, ["a longer answer"] * 20)
    assert "verdicts.jsonl.rejects.jsonl" in str(caught.value)
    made = diagnose(tmp_path, ["a longer answer"] * 20, "--resume", "--allow-missing")
    assert (made["win_rate"], made["unjudged"], made["unanswered"]) == (1.0, 2, 2)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "Why?", "chosen": "a longer answer", "rejected": "x"},
        {"prompt": "Why?", "chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "x"}]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "x"}]},
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [{**SAID, "content": "x"}]},
        {"chosen": "Why? a longer answer", "rejected": "Why? no"},
    ],
)
def test_every_format_of_pairs_is_read(tmp_path: Path, columns: dict[str, Any]):
    """The answer is judged under its prompt and without it."""
    (tmp_path / "pairs.jsonl").write_text(json.dumps(columns) + "\n")
    command = ["eval", "zero_or_down", "--pairs", str(tmp_path / "pairs.jsonl"), "--output"]
    command += [str(tmp_path / "out"), "--model", f"program:{__name__}.policy"]
    dispatch([*command, "--judge-model", f"program:{__name__}.judge"])
    (verdict,) = [row for _, row in read_rows(tmp_path / "out" / "verdicts.jsonl")]
    assert (verdict["prompt"], verdict["answer"].strip()) == ("Why?", "a longer answer")
    assert verdict["score"] == 1.0


def test_a_file_without_pairs_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no row has a `chosen` answer"):
        diagnose(tmp_path, [""])
