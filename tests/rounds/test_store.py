"""A stage is done once; what changes is made anew with all that depends on it, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.llm.ledger import Call, Entry, Ledger, Totals
from alignment.llm.protocol import Reply
from alignment.rounds.store import RECORD, Store, here

Log = list[str]


def write(name: str, log: Log, text: str = "") -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        log.append(name)
        (folder / "out.txt").write_text(text)

    return work


def chain(run: Path, log: Log, first: int = 0, second: int = 0) -> Path:
    """Two stages of which the second reads the first, and one that reads neither."""
    store = Store(run)
    one = store.make("a", "one", {"x": first}, write("one", log)) / "out.txt"
    store.make("a", "apart", {"z": 0}, write("apart", log))
    return store.make("b", "two", {"from": one, "y": second}, write("two", log))


def test_what_is_done_is_not_done_again(tmp_path: Path):
    log: Log = []
    assert chain(tmp_path, log) == chain(tmp_path, log)
    assert log == ["one", "apart", "two"]


def test_a_changed_setting_makes_anew_what_depends_on_it_and_nothing_else(tmp_path: Path):
    log: Log = []
    chain(tmp_path, log)
    chain(tmp_path, log, second=1)
    assert log == ["one", "apart", "two", "two"]
    chain(tmp_path, log, first=1)
    assert log[4:] == ["one", "two"]


def test_earlier_settings_find_their_stages_again(tmp_path: Path):
    log: Log = []
    first = chain(tmp_path, log)
    chain(tmp_path, log, first=1)
    count = len(log)
    assert chain(tmp_path, log) == first
    assert len(log) == count


def test_the_order_of_settings_is_nothing_and_the_place_of_the_run_neither(tmp_path: Path):
    def make(run: Path, *names: str) -> str:
        return Store(run).make("a", "s", dict.fromkeys(names, 1), lambda _: None).name

    assert make(tmp_path / "x", "p", "q") == make(tmp_path / "y", "q", "p")


def test_files_elsewhere_count_by_content_and_folders_as_models(tmp_path: Path):
    log: Log = []
    file, model = tmp_path / "prompts.jsonl", tmp_path / "model"
    model.mkdir()

    def run() -> None:
        settings = {"prompts": file, "model": model}
        Store(tmp_path / "run").make("a", "s", settings, write("s", log))

    file.write_text("one")
    (model / "config.json").write_text("{}")
    run()
    file.touch()
    run()
    assert log == ["s"]
    (model / "config.json").write_text('{"a": 1}')
    run()
    assert log == ["s", "s"]
    file.write_text("two!")
    run()
    assert len(log) == 3


def test_a_program_counts_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_judge.py").write_text("def judge(request): return 'A'\n")
    told = Store(tmp_path / "run").identity("program:some_judge.judge")
    assert told[0] == "program:some_judge.judge"
    assert len(told[1]) == 16
    assert Store(tmp_path / "run").identity("program:no_such.judge")[1] == ""


def test_texts_that_name_something_are_paths_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    told = {
        "list": ["a.txt", 1],
        "in": {"it": "a.txt"},
        "none": None,
        "empty": "",
        "long": "x" * 999,
    }
    assert here(told) == told | {"list": [Path("a.txt"), 1], "in": {"it": Path("a.txt")}}
    assert here("a.txt", tmp_path) == tmp_path / "a.txt"


def test_a_folder_of_data_counts_by_its_files(tmp_path: Path):
    store = Store(tmp_path / "run")
    folder = tmp_path / "data"
    (folder / "deeper").mkdir(parents=True)
    (folder / "train.jsonl").write_text("one")
    first = store.identity(folder)
    assert [*first] == ["train.jsonl"]
    (folder / "train.jsonl").write_text("two!")
    assert store.identity(folder) != first


def test_a_yaml_file_counts_by_what_it_says_and_names(tmp_path: Path):
    """A judge's file names its prompt, from where it lies."""
    store = Store(tmp_path / "run")
    judge, prompt = tmp_path / "judge.yaml", tmp_path / "prompt.txt"
    prompt.write_text("A or B?")
    judge.write_text("prompt: prompt.txt\n")
    first = store.identity(judge)
    judge.write_text("# A comment is read by nobody.\nprompt: prompt.txt\n")
    assert store.identity(judge) == first
    prompt.write_text("B or A?")
    assert store.identity(judge) != first
    judge.write_text("{")
    assert store.identity(judge).startswith("file ")


def test_a_path_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        Store(tmp_path / "run").make("a", "s", {"p": tmp_path / "none"}, lambda _: None)


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path: Path):
    def stop(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    def go_on(folder: Path) -> None:
        assert (folder / "half").exists()

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make("a", "s", {}, stop)
    folder = Store(tmp_path).make("a", "s", {}, go_on)
    assert json.loads((folder / RECORD).read_text())["done"]


def test_a_stage_costs_what_it_has_added_to_the_ledger_over_all_its_attempts(tmp_path: Path):
    store = Store(tmp_path)
    source = {"provider": "p", "model": "m", "fingerprint": "f", "verb": "chat"}

    def ask(number: int) -> None:
        call = Call(Reply("yes", "stop", 10, 2), price=0.5, latency=0.1, attempts=1)
        with Ledger(store.ledger) as ledger:
            ledger.put(Entry(bytes([number]), source, call))

    def stop(_: Path) -> None:
        ask(1)
        raise KeyboardInterrupt

    store.make("a", "free", {}, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        store.make("a", "asks", {}, stop)
    store.make("a", "asks", {}, lambda _: ask(2))
    assert [made.calls for made in store.made] == [Totals(), Totals(2, 20, 4, 1.0)]
    assert [made.calls for made in store.made] == [m.calls for m in _again(tmp_path)]


def _again(run: Path) -> list:
    store = Store(run)
    store.make("a", "free", {}, lambda _: None)
    store.make("a", "asks", {}, lambda _: None)
    return store.made
