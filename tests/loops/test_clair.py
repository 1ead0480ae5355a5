"""CLAIR on-policy is found by its name, as is a loop of one's own by its path."""

from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.loops.clair import CLAIROnPolicy
from alignment.rounds.loop import load_loop


def test_a_loop_is_found_by_the_name_of_its_file():
    assert load_loop("clair", {}) == CLAIROnPolicy()
    with pytest.raises(UserError, match="did you mean `clair`"):
        load_loop("clare", {})


def test_the_loop_of_the_page_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).resolve().parents[2] / "docs/loops.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "judged_pairs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    loop = load_loop("judged_pairs.JudgedPairs", {})
    assert (loop.objective, loop.builder) == ("dpo", "on_policy_judge")
    with pytest.raises(UserError, match="is no subclass of"):
        load_loop("judged_pairs.Path", {})
