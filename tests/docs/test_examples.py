"""The objectives, the builder, the evaluator and the program on the pages do what they say."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignment.core.rows import read_rows
from alignment.objectives import load_objective
from tests.docs.pages import blocks
from tests.objectives.batches import pair_batch

LONGEST = 35
"""Lines of an example: 25 of code, and imports."""

OBJECTIVE, BUILDER, EVALUATOR = blocks("docs/extending.md", "python")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, from which modules are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(folder: Path, name: str, text: str) -> ModuleType:
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trained(folder: Path, model: Path, objective: str, kwargs: dict[str, Any]) -> list[float]:
    """The losses of some steps on pairs."""
    from alignment.trainers.base import GroupTrainer
    from alignment.trainers.config import GroupConfig

    args = GroupConfig(
        output_dir=str(folder / "run"),
        objective=objective,
        objective_kwargs=kwargs,
        max_steps=5,
        logging_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
    )
    rows = [{"prompt": f"{i}?", "chosen": " yes", "rejected": " no"} for i in range(4)]
    trainer = GroupTrainer(str(model), args, rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_examples_are_short():
    for block in (OBJECTIVE, BUILDER, EVALUATOR, *blocks("README.md", "python")):
        assert len([line for line in block.text.splitlines() if line]) <= LONGEST


def test_the_objective_of_the_readme_trains(here: Path, model_dir: Path):
    (block,) = blocks("README.md", "python")
    saved(here, "hinge", block.text)
    losses = trained(here, model_dir, "hinge.Hinge", {"margin": 50.0})
    assert losses[-1] < losses[0] - 1


def test_the_objective_of_the_page_is_ipo_and_trains(here: Path, model_dir: Path):
    """Log-ratios 1 and -2, tau 1/4: (3 - 1 / (2 tau))^2 = (3 - 2)^2 = 1."""
    saved(here, "ipo", OBJECTIVE.text)
    terms = pair_batch([-1.0], [-3.0], [-2.0], [-1.0])
    loss = load_objective("ipo.IPO", {"tau": 0.25})(terms).loss()
    assert loss.item() == pytest.approx(1.0)
    losses = trained(here, model_dir, "ipo.IPO", {})
    assert losses[0] == pytest.approx(25.0, abs=1e-4)  # (0 - 1 / 0.2)^2
    assert losses[-1] < losses[0] - 1


def test_the_builder_of_the_page_builds(here: Path):
    module = saved(here, "capitals", BUILDER.text)
    saved(here, "echo", "def say(request):\n    return request.prompt[-1]['content'] + '!'\n")
    write_rows(here / "in.jsonl", [{"prompt": "hello"}])
    module.main(["--input", "in.jsonl", "--output", "out.jsonl", "--model", "program:echo.say"])
    (row,) = [row for _, row in read_rows(here / "out.jsonl")]
    assert (row["chosen"], row["rejected"]) == ("hello!", "HELLO!")
    assert json.loads((here / "out.jsonl.report.json").read_text())["builder"] == "capitals"


def test_the_evaluator_of_the_page_evaluates(here: Path, capsys: pytest.CaptureFixture[str]):
    """Of two revisions one is right where its draft was wrong, the other is as wrong: 0.75."""
    module = saved(here, "revisions", EVALUATOR.text)
    write_rows(
        here / "pairs.jsonl",
        [
            {"prompt": "sort: owl fox", "draft": "owl fox", "revision": "fox owl"},
            {"prompt": "count: owl fox", "draft": "4", "revision": "3"},
        ],
    )
    judge = "program:alignment.quickstart.world.judge"
    module.main(["--pairs", "pairs.jsonl", "--output", "out.jsonl", "--judge-model", judge])
    assert capsys.readouterr().out.startswith("0.750 ")


def test_the_reviser_of_the_page_is_read_by_clair(here: Path):
    from data_builders import clair

    (block,) = blocks("docs/calls.md", "python")
    saved(here, "reviser", block.text)
    write_rows(here / "in.jsonl", [{"prompt": "2 + 2?", "response": "Five."}])
    words = ["--input", "in.jsonl", "--output", "out.jsonl", "--model", "program:reviser.revise"]
    clair.main(words)
    (row,) = [row for _, row in read_rows(here / "out.jsonl")]
    assert (row["chosen"], row["rejected"]) == ("Four.", "Five.")
