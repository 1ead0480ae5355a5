"""Groups of samples, and pairs mixed with older ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.llm.rows import Output
from alignment.rounds.samples import write_groups, write_mixture

Rows = list[dict[str, Any]]


def file(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(folder: Path, write: Callable[[Output], None]) -> tuple[Rows, Rows]:
    """The rows that are written, and those that are rejected."""
    with Output(folder / "out.jsonl") as output:
        write(output)
    paths = (folder / "out.jsonl", folder / "out.jsonl.rejects.jsonl")
    kept, dropped = ([dict(r) for _, r in read_rows(p)] if p.exists() else [] for p in paths)
    return kept, dropped


def answer(prompt: str, text: str, sample: int, reason: str = "stop") -> dict[str, Any]:
    columns = {"prompt": prompt, "response": text, "sample": sample, "model": "m"}
    return {**columns, "finish_reason": reason}


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_samples_of_a_prompt_become_a_group_in_which_each_stands_once(tmp_path: Path):
    rows = [answer("p", text, index) for index, text in enumerate(["a", "b", "a ", ""])]
    rows += [answer("q", "a", 0), answer("q", "a", 1)]
    rows += [answer("r", "a", 0, "length"), answer("r", "b", 1, "length")]
    rows += [answer("s", "", 0), answer("s", " ", 1)]
    answers = file(tmp_path / "answers.jsonl", rows)
    (group,), dropped = made(tmp_path, lambda output: write_groups(output, answers))
    assert group["responses"] == ["a", "b"]
    assert group["meta"] == {"samples": [0, 1], "of": 4}
    assert [(row["source"], row["reason"]) for row in dropped] == [
        ("answers.jsonl:5", "identical"),
        ("answers.jsonl:7", "truncated"),
        ("answers.jsonl:9", "empty"),
    ]


def test_old_rows_that_are_no_pairs_are_rejected_and_of_several_the_last_counts(tmp_path: Path):
    new = file(tmp_path / "new.jsonl", [pair("p")])
    rows = [{"chosen": "a", "rejected": "b"}, {"prompt": "p", "rejected": "b"}]
    old = file(tmp_path / "old.jsonl", [*rows, pair("p", "first"), pair("p", "last")])
    how = {"keep_pair": 1.0, "keep_chosen": 0.0, "old_share": 0.0}
    kept, dropped = made(tmp_path, lambda output: write_mixture(output, new, [old], seed=0, **how))
    assert kept == [pair("p", "last")]
    assert [(row["source"], row["reason"]) for row in dropped] == [
        ("old.jsonl:1", "no_prompt"),
        ("old.jsonl:2", "no_chosen"),
    ]


def mixture(folder: Path, **how: float) -> Rows:
    new = file(folder / "new.jsonl", [pair(f"p{n}") for n in range(200)])
    old = file(folder / "old.jsonl", [pair(f"p{n}", "old", "older") for n in range(100, 400)])
    chosen = {"keep_pair": 0.0, "keep_chosen": 0.0, "old_share": 0.0, **how}
    return made(folder, lambda output: write_mixture(output, new, [old], seed=0, **chosen))[0]


def test_without_probabilities_new_pairs_stay_as_they_are(tmp_path: Path):
    assert mixture(tmp_path) == [pair(f"p{n}") for n in range(200)]


def test_old_pairs_replace_new_ones_of_their_prompts(tmp_path: Path):
    rows = mixture(tmp_path, keep_pair=1.0)
    assert rows[:100] == [pair(f"p{n}") for n in range(100)]
    assert rows[100:] == [pair(f"p{n}", "old", "older") for n in range(100, 200)]
    some = sum(row["chosen"] == "old" for row in mixture(tmp_path, keep_pair=0.3))
    assert 15 <= some <= 45  # 30 of 100, six standard errors at most


def test_old_chosen_sides_stand_beside_new_rejected_ones(tmp_path: Path):
    row = mixture(tmp_path, keep_chosen=1.0)[150]
    assert (row["chosen"], row["rejected"]) == ("old", "bad")
    assert row["meta"] == {"chosen_is_old": True}


def test_a_share_of_old_pairs_of_other_prompts_is_added(tmp_path: Path):
    added = mixture(tmp_path, old_share=0.5)[200:]
    assert len(added) == len({row["prompt"] for row in added}) == 100
    assert all(row["chosen"] == "old" and int(row["prompt"][1:]) >= 200 for row in added)
    assert added == mixture(tmp_path, old_share=0.5)[200:]
