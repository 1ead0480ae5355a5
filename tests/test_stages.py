"""Stages are done once, go on where they stopped, and never mix settings."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.stages import RunFolder, Stage


def stage(name: str, log: list[str], work: Callable[[], None] = lambda: None, **settings: int):
    def logged() -> None:
        log.append(name)
        work()

    return Stage(name, settings, logged)


def fail() -> None:
    raise KeyboardInterrupt


def test_finished_stages_are_skipped_and_the_interrupted_one_is_done_again(tmp_path: Path):
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path / "run", [stage("a", log), stage("b", log, fail)]).run()
    RunFolder(tmp_path / "run", [stage("a", log), stage("b", log), stage("c", log)]).run()
    assert log == ["a", "b", "b", "c"]


def test_seconds_are_known_for_every_finished_stage(tmp_path: Path):
    RunFolder(tmp_path / "run", [stage("a", []), stage("b", [])]).run()
    again = RunFolder(tmp_path / "run", [stage("a", []), stage("b", [])])
    assert again.seconds.keys() == {"a", "b"}
    assert all(seconds >= 0 for seconds in again.seconds.values())


@pytest.mark.parametrize("done", [True, False])
def test_a_changed_setting_is_refused_by_name_even_before_its_stage_is_done(
    tmp_path: Path, done: bool
):
    folder = RunFolder(tmp_path / "run", [stage("a", [], seed=0)])
    if done:
        folder.run()
    with pytest.raises(UserError, match=r"other settings \(a: `seed` was 0, now 1\).*--overwrite"):
        RunFolder(tmp_path / "run", [stage("a", [], seed=1)])


def test_overwrite_starts_anew(tmp_path: Path):
    log: list[str] = []
    RunFolder(tmp_path / "run", [stage("a", log, seed=0)]).run()
    (tmp_path / "run/output.txt").write_text("old")
    RunFolder(tmp_path / "run", [stage("a", log, seed=1)], overwrite=True).run()
    assert log == ["a", "a"]
    assert not (tmp_path / "run/output.txt").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds something else"):
            RunFolder(tmp_path, [stage("a", [])], overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
