"""The command line finds its verbs by their files."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignment.__main__ import commands, dispatch, main, verbs
from alignment.cli import UserError


def test_verbs_are_the_files_that_define_main():
    found = verbs()
    assert {"build", "data", "eval", "generate"} <= set(found)
    assert "clair" in commands("data_builders")
    assert "winrate" in commands("eval")
    assert "judge" not in commands("eval")
    assert all(told.endswith(".") for told in found.values())


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "  generate  " in capsys.readouterr().out


def test_help_of_a_family_lists_its_names(capsys: pytest.CaptureFixture[str]):
    dispatch(["build", "--help"])
    assert "  clair" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generat"], "unknown verb `generat`; did you mean `generate`?"),
        (["build", "claire"], "unknown name for `alignment build` `claire`; did you mean `clair`?"),
        (["eval", "winrates"], "did you mean `winrate`?"),
    ],
)
def test_a_mistyped_verb_is_told_with_the_nearest(argv: list[str], message: str):
    with pytest.raises(UserError) as caught:
        dispatch(argv)
    assert message in str(caught.value)


def test_a_command_is_handed_the_rest_of_the_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        dispatch(["eval", "winrate", "--help"])
    assert "usage: alignment eval winrate" in capsys.readouterr().out


def test_modules_of_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The installed command has its own folder in their place; here the folder of the tests."""
    (tmp_path / "own_judge_of_this_test.py").write_text("def judge(request):\n    return 1 / 0\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    words = ["--model", "program:own_judge_of_this_test.judge", "--prompts", "p.jsonl"]
    with pytest.raises(SystemExit) as caught:
        main(["generate", *words, "--output", "a.jsonl"])
    assert caught.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "own_judge_of_this_test.judge` failed: ZeroDivisionError: division by zero" in told
    assert told.endswith("own_judge_of_this_test.py:2)")


def test_an_error_is_one_line_and_status_2():
    run = subprocess.run(
        [sys.executable, "-m", "alignment", "eval", "winrate", "--answers", "a"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: `alignment eval winrate` needs `--baseline`")
    assert run.stderr.count("\n") == 1
