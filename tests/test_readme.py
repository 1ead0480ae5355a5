"""The README is followed literally: its commands run, its objective trains."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Setting up and testing are what runs this test in the first place; the quickstart has its own.
ELSEWHERE = ("make venv", "make check", "make test", "make quickstart", "source ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The shell blocks, without the lines that set up or test."""
    kept = []
    for block in blocks("bash"):
        lines = [line for line in block.splitlines() if not line.startswith(ELSEWHERE)]
        if lines:
            kept.append("\n".join(lines))
    return kept


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:alignment|recipes|docs|tests|benchmarks)/[\w./-]+)`", README)
    named += re.findall(r"\]\(((?!http)[\w./-]+)\)", README)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    for name in ("recipes", "tests", "alignment", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    script = "set -euo pipefail\n" + "\n".join(commands())
    assert "accelerate launch" in script
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"loss": 1.0' in done.stdout
    assert (tmp_path / "runs/nca/adapter_model.safetensors").stat().st_size > 1000


def test_the_objective_of_the_readme_trains(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.trainers.base import GroupTrainer
    from alignment.trainers.config import GroupConfig

    (code,) = blocks("python")
    assert len(code.splitlines()) <= 27
    (tmp_path / "hinge.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"prompt": f"{i}?", "chosen": " yes", "rejected": " no"} for i in range(4)]
    args = GroupConfig(
        output_dir=str(tmp_path / "run"),
        objective="hinge.Hinge",
        objective_kwargs={"margin": 50.0},
        max_steps=5,
        logging_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
    )
    trainer = GroupTrainer(str(model_dir), args, rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 1
