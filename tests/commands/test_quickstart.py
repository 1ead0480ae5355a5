"""The whole way from prompts to a win rate, in the world and with a model of the user's."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.commands.quickstart import Options, main, quickstart
from alignment.core.rows import read_rows
from alignment.stages import RECORD
from tests.llm.server import Answer, Body, last_words, serve

REDUCED = ["--sft-steps", "500", "--train-prompts", "1200", "--steps", "80"]


def options(*words: object) -> Options:
    return parse(Options, list(map(str, words)), "alignment quickstart")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "m"], "`--model` and `--prompts` go together"),
        (["--prompts", "p.jsonl"], "`--model` and `--prompts` go together"),
        (["--model", "m", "--prompts", "p.jsonl"], "`--model` needs a judge"),
        (["--judge-url", "http://localhost:1"], "the world has its own"),
        (["--steps", "0"], "`steps` is 0; it must be at least 1"),
        (["--objectiv", "apo"], "did you mean `--objective`?"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(words: list[str], message: str):
    with pytest.raises(UserError) as caught:
        options(*words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "ap"], "did you mean `apo`?"),
        (["--objective", "cut"], "needs twin, which pairs do not have"),
        (["--objective-kwargs", '{"bta": 1}'], "did you mean `beta`?"),
    ],
)
def test_an_objective_that_cannot_train_on_pairs_is_refused_before_any_work(
    tmp_path: Path, words: list[str], message: str
):
    with pytest.raises(UserError) as caught:
        quickstart(options("--output", tmp_path / "run", *words))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="session")
def world_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of reduced size; read only."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    quickstart(options("--output", folder, *REDUCED))
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


@pytest.mark.slow
def test_training_on_pairs_wins_over_the_start(world_run: Path):
    results = results_of(world_run)
    assert results["win_rate_ci"][0] > 0.5
    assert results["accuracy_after"] > results["accuracy_before"] + 0.05
    assert results["n_prompts"] == 400
    assert results["seed"] == 0
    assert set(results["seconds"]) >= {"sft", "pairs", "adapter", "judged"}
    assert (world_run / "adapter/adapter_model.safetensors").is_file()
    for name in ("loss", "logratios", "win_rate", "summary"):
        assert (world_run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    stages = {row["stage"] for _, row in read_rows(world_run / "metrics.jsonl")}
    assert stages == {"sft", "adapter"}


@pytest.mark.slow
def test_pairs_with_sides_swapped_at_random_do_not_win(world_run: Path, tmp_path: Path):
    folder = copy_up_to_pairs(world_run, tmp_path / "run")
    rng = random.Random(0)
    pairs = [row for _, row in read_rows(folder / "pairs.jsonl")]
    for row in pairs:
        if rng.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    swapped = quickstart(options("--output", folder, *REDUCED))
    assert swapped["win_rate_ci"][0] <= 0.5
    assert swapped["accuracy_before"] == results_of(world_run)["accuracy_before"]


def copy_up_to_pairs(source: Path, folder: Path) -> Path:
    """A run that was interrupted before it trained on its pairs."""
    left_out = shutil.ignore_patterns("adapter", "judged", "after.jsonl*", "results.json", "*.png")
    shutil.copytree(source, folder, ignore=left_out)
    # A run tells where its files lie; this one has moved.
    text = (folder / RECORD).read_text().replace(str(source), str(folder))
    record = json.loads(text)
    for stage in ("adapter", "after", "judged"):
        del record["seconds"][stage]
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def reviser_and_judge(_: int, body: Body) -> Answer:
    """Puts `Yes.` in place of every answer, and prefers whatever is shown second."""
    words = last_words(body)
    return Answer("## Revised answer\nYes." if "[answer " in words else "Why not.\nVerdict: B")


@pytest.mark.slow
def test_a_run_with_a_model_of_ones_own_goes_on_without_a_repeated_call(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Is {n} big?"}) + "\n" for n in range(20)))
    words = [
        *("--output", tmp_path / "run", "--model", model_dir, "--prompts", prompts),
        *("--steps", 2, "--batch-size", 4, "--max-tokens", 8),
    ]
    with serve(reviser_and_judge) as server:
        words += ["--judge-url", server.url]
        main(list(map(str, words)))
        first = len(server.bodies)
        record = json.loads((tmp_path / "run" / RECORD).read_text())
        for stage in ("pairs", "judged"):
            del record["seconds"][stage]
        (tmp_path / "run" / RECORD).write_text(json.dumps(record))
        main(list(map(str, words)))
        assert len(server.bodies) == first
    results = results_of(tmp_path / "run")
    assert results["win_rate"] == 0.5  # a judge that looks at the order alone
    assert results["accuracy_before"] is None
    assert "win rate over the start" in capsys.readouterr().out
