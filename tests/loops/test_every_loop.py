"""Every loop by its own recipe in the small world, and killed in every stage."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.__main__ import dispatch
from alignment.cli import load_yaml, parse
from alignment.commands.loop import loop
from alignment.rounds.options import Options
from tests.rounds.killed import survives_kills
from tests.rounds.small import config, teach

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("clair", "lions", "ampo", "distillm2", "isara")
WORLD = "program:alignment.quickstart.world"
CRITICS = "program:tests.rounds.counted"
SMALL: dict[str, dict[str, Any]] = {
    "clair": {"builder_model": f"{CRITICS}.revise", "build": {"concurrency": 4}},
    "lions": {
        "builder_model": f"{CRITICS}.rate",
        "build": {"aspects": "overall", "concurrency": 4},
        "method_kwargs": {"samples": 3, "old_share": 0.5},
    },
    "ampo": {
        "builder_model": f"{CRITICS}.rate",
        "build": {"aspects": "overall", "concurrency": 4},
        "method_kwargs": {"samples": 4, "negatives": 2},
    },
    "distillm2": {},
    "isara": {},
}


def seeds(world: Path) -> Path:
    """The first demonstrations of a world."""
    lines = (world / "demonstrations.jsonl").read_text().splitlines()[:64]
    path = world / "seeds.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def teacher(world: Path, folder: Path, **size: Any) -> Path:
    """A better model: the start after a round of CLAIR, merged."""
    programs = {"builder_model": f"{WORLD}.revise", "judge_model": f"{WORLD}.judge"}
    file = config(world, folder / "teacher.yaml", method="clair", rounds=1, **programs, **size)
    options = parse(Options, ["--config", str(file)], "test")
    results = loop(options)
    adapter = options.output / results["rounds"][0]["adapter"]
    dispatch(["merge", "--adapter", str(adapter), "--output", str(folder / "merged")])
    return folder / "merged"


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_loop_ends_the_same_when_it_is_killed_in_every_stage(
    method: str, small_world: Path, tmp_path: Path
):
    given = dict(SMALL[method])
    if method == "distillm2":
        given["method_kwargs"] = {"teacher": str(teacher(small_world, tmp_path))}
    if method == "isara":
        given["method_kwargs"] = {"samples": 2, "seeds": str(seeds(small_world))}
    file = config(small_world, tmp_path / "loop.yaml", method=method, **given)
    (tmp_path / "kills").mkdir()
    results = survives_kills(file, tmp_path / "kills")
    assert len(results["rounds"]) == 2
    assert all(row["examples"] > 0 for row in results["rounds"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's start, and what recipes need beside it."""
    folder = teach(tmp_path_factory.mktemp("quickstart"), 1000, 2400, 400)
    seeds(folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("method", ["cut", *METHODS])
def test_three_rounds_by_the_recipe(
    method: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    recipe = load_yaml(f"recipes/{method}/loop.yaml")
    recipe |= {
        "model": str(world / "start"),
        "prompts": str(world / "prompts/train.jsonl"),
        "held_out": str(world / "prompts/held_out.jsonl"),
        "output": str(tmp_path / "run"),
        "patience": None,
    }
    if method == "distillm2":
        steps = {"max_steps": 100, "global_batch_size": 24, "objective_kwargs": {"beta": 0.5}}
        made = teacher(world, tmp_path, prompts_per_round=1600, train=steps)
        recipe["method_kwargs"] = {"teacher": str(made)}
    if method == "isara":
        recipe["method_kwargs"] = {"seeds": str(world / "seeds.jsonl")}
    file = tmp_path / "loop.yaml"
    file.write_text(yaml.safe_dump(recipe))
    results = loop(parse(Options, ["--config", str(file)], "test"))
    assert [row["round"] for row in results["rounds"]] == [1, 2, 3]
    told = [(row["score"], row["score_ci"]) for row in results["rounds"]]
    seconds = results["cost"]["seconds"]  # ten minutes on two cores that do nothing else
    sys.stdout.write(f"{method}: {json.dumps(told)} in {seconds:.0f} s\n")
    assert (tmp_path / "run/scores.png").is_file()
