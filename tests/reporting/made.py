"""Folders as runs leave them, with a text of the caller's wherever foreign text can stand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.tournament import report

JUDGE = {"provider": "program", "fingerprint": "ab12", "prompt": "pairwise.txt", "sampling": {}}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as JSON Lines, and the folder they stand in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(text: str, data: Path, **changes: Any) -> dict[str, Any]:
    """A `run.json` as training writes it."""
    return {
        "version": "0.1.0",
        "command": f"alignment train --note '{text}'",
        "objective": {
            "name": text,
            "method": f"APO(beta=0.5, note={text!r})",
            "summary": text,
            "paper": text,
            "formula": f"loss = {text}",
            "arxiv": ["2408.06266"],
        },
        "model": {
            "start": text,
            "architecture": "llama",
            "parameters": 1000,
            "adapter": {"r": 16, "target_modules": ["q_proj"], "parameters": 100},
        },
        "data": {
            "train": [str(data)],
            "eval": [],
            "kept": 8,
            "responses": 16,
            "rejected": {"identical": 2},
            "notices": {},
        },
        "run": {"batch_size": 4, "seed": 0, "engine": "one process", "processes": 1},
        "layout": "ragged",
        "settings": {"learning_rate": 1e-3, "run_name": text},
        "steps": 40,
        "steps_planned": 40,
        "tokens": 5000,
        "seconds": 100.0,
        "machine": {
            "device": "CPU",
            "processes": 1,
            "cores": 2,
            "system": "Linux x86_64",
            "peak_memory_bytes": None,
            "precision": "float32",
        },
        "versions": {"contrastive-alignment": "0.1.0", "torch": "2.13.0"},
        **changes,
    }


def logs(text: str) -> list[dict[str, Any]]:
    """Forty logs with a verdict at the tenth, and two evaluations."""
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 1 - step / 100,
            "logratios/chosen": step / 50,
            "logratios/rejected": -step / 20,
            "rewards/margins": step / 10,
            "rewards/accuracies": 0.5 + step / 100,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "epoch": step / 40,
            **({"verdicts": [f"margin from the rejected side only: {text}"]} if step == 10 else {}),
        }
        for step in range(1, 41)
    ]
    for step in (20, 40):
        measured = {"eval_loss": 1 - step / 120, "eval_rewards/accuracies": 0.6, "eval_runtime": 3}
        rows.append({"step": step, **measured})
    return [*rows, {"step": 40, "train_runtime": 100.0, "train_loss": 0.8}]


def training(folder: Path, text: str = "words") -> Path:
    """The folder of a training run."""
    pairs = [
        {"prompt": f"{text} {n}", "chosen": f"{text} good", "rejected": f"{text} bad"}
        for n in range(8)
    ]
    data = write_lines(folder / "pairs.jsonl", [*pairs, {"chosen": text}])
    write_lines(
        folder / "pairs.jsonl.rejects.jsonl",
        [{"source": text, "reason": text, "message": text, "row": {}}],
    )
    run = folder / "run"
    write_lines(run / "metrics.jsonl", logs(text))
    (run / "run.json").write_text(json.dumps(record(text, data)))
    write_lines(run / "rejects.jsonl", [{"row": "a:1", "reason": "identical"}])
    (run / "checkpoint-40").mkdir()
    manifest = {"resumable": True, "files": {"weights": [2_000_000, 7]}, "origin": {}}
    (run / "checkpoint-40/checkpoint.json").write_text(json.dumps(manifest))
    (run / "checkpoint-20").mkdir()
    return run


def verdicts(text: str, names: tuple[str, str], count: int = 30) -> list[dict[str, Any]]:
    """Comparisons of which, of every five, two are won, one lost, one tied, one not judged."""
    rows = []
    for n in range(count):
        score = (1.0, 1.0, 0.0, 0.5, None)[n % 5]
        fault = None if score is not None else "unparseable"
        votes = [
            {"first": first, "preference": score, "fault": fault, "text": text, "weighted": False}
            for first in ("answer", "baseline")
        ]
        answer = f"{text} {n}" + " indeed" * (n % 4)
        told = {"score": score, "consistent": None if score is None else True, "votes": votes}
        both = {"model": names[0], "against": names[1], "prompt": f"{text} {n}"}
        rows.append({**both, "answer": answer, "baseline": f"{text} {n}", **told})
    return rows


def winrate(folder: Path, text: str = "words", names: tuple[str, ...] = ("new", "old")) -> Path:
    """The folder of a win rate, of each model against the last."""
    rows = [row for name in names[:-1] for row in verdicts(text, (name, names[-1]))]
    write_lines(folder / "verdicts.jsonl", rows)
    made = {
        **report(rows, seed=0, resamples=50, length_tolerance=0.1),
        "judge": {**JUDGE, "model": text},
    }
    (folder / "results.json").write_text(json.dumps(made))
    return folder


def quickstart(folder: Path, text: str = "words") -> Path:
    """The folder of a quickstart."""
    made = training(folder, text)
    made.rename(folder / "adapter")
    winrate(folder / "judged", text)
    seconds = {"world": 1.0, "adapter": 100.0}
    stages = {"world": {"seed": 0}, "adapter": {"command": f"train {text}"}, "judged": {}}
    (folder / "stages.json").write_text(json.dumps({"settings": stages, "seconds": seconds}))
    judged = json.loads((folder / "judged/results.json").read_text())
    results = {
        **{name: judged[name] for name in ("win_rate", "win_rate_ci", "n_prompts")},
        **{"accuracy_before": 0.5, "accuracy_after": 0.75, "pairs": 8, "seed": 0},
        **{"rows_without_pair": {"identical": 2}, "objective": text, "objective_kwargs": {}},
        **{"seconds": seconds, "versions": {"torch": "2.13.0"}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder
