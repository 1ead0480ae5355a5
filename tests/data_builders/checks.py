"""What every builder must stand: its output trains, a kill repeats no call, a real server answers.

    rows = survives_a_kill(tmp_path, script, "build", "clair", "--input", source)
    metrics = trains(tmp_path, output, "apo")

All of them start processes or train a model, so tests that use them are marked `slow`.
"""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment.core.rows import read_rows
from alignment.llm.rows import Row
from alignment.train import main
from tests.llm.real_server import Served
from tests.llm.server import Answer, Body, Script, serve
from tests.tiny import save_tiny

CONCURRENCY = 4


def trains(
    folder: Path,
    data: Path,
    objective: str,
    *,
    steps: int = 20,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Trains a tiny model on a file for some steps through `alignment train`, with no row rejected.

    Args:
        folder: Where the model and the run go.
        data: A builder's output.
        objective: What it is meant for; one that needs a teacher gets one.
        steps: Optimiser steps.
        kwargs: Hyper-parameters of the objective.
        **options: Further options of `alignment train`.

    Returns:
        The metrics of each step.
    """
    run = folder / f"train_{objective}"
    chosen: dict[str, Any] = {
        "model_name_or_path": save_tiny(folder / "student"),
        "dataset_name": data,
        "objective": objective,
        "objective_kwargs": json.dumps(dict(kwargs or {})),
        "output_dir": run,
        "max_steps": steps,
        "max_length": 4096,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "activation_checkpointing": False,
        **options,
    }
    if objective in ("distillm2", "distillm", "gkd", "kd", "dpkd"):
        teacher = save_tiny(folder / "teacher", seed=1, hidden_size=48)
        chosen["teacher_model_name_or_path"] = teacher
    main([word for name, value in chosen.items() for word in (f"--{name}", str(value))])
    rejects = run / "rejects.jsonl"
    assert not rejects.exists(), rejects.read_text()[:2000]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [row for row in logged if "loss" in row]
    assert [row["step"] for row in metrics] == [*range(1, steps + 1)]
    assert all(math.isfinite(row["loss"]) for row in metrics)
    return metrics


def survives_a_kill(folder: Path, script: Script, *words: object, models: int = 1) -> list[Row]:
    """Kills a job half way by SIGKILL, runs it again, and compares with a job that ran through.

    Output and rejects must be the same byte for byte, and no call may be made twice but those that
    were in flight.

    Args:
        folder: An empty folder of the test.
        script: What the server answers; it should look at the body, not at the call's number.
        *words: The command after `alignment`, without `--output`, `--model`, `--base-url` and
            `--concurrency`. Of a judge too, `{url}` stands for the server's address.
        models: How many are asked, each as many calls at a time.

    Returns:
        The rows that were made.
    """
    child: subprocess.Popen[str] | None = None
    kill_at: int | None = None

    def watched(index: int, body: Body) -> Answer:
        if kill_at is not None and index >= kill_at and child is not None:
            child.send_signal(signal.SIGKILL)
        answer = script(index, body) if callable(script) else script[min(index, len(script) - 1)]
        return replace(answer, delay=max(answer.delay, 0.01))

    with serve(watched) as server:

        def job(name: str, *more: str) -> int:
            nonlocal child
            command = [str(word).replace("{url}", server.url) for word in words]
            command += ["--output", str(folder / name / "out.jsonl"), "--model", "tiny"]
            command += ["--base-url", server.url, "--concurrency", str(CONCURRENCY), *more]
            pipe = subprocess.PIPE
            child = subprocess.Popen(
                [sys.executable, "-m", "alignment", *command], stdout=pipe, stderr=pipe, text=True
            )
            _, errors = child.communicate(timeout=120)
            assert child.returncode in (0, -signal.SIGKILL), errors
            return child.returncode

        assert job("whole") == 0
        whole = Counter(map(_key, server.bodies))
        asked = len(server.bodies)
        assert asked >= 4 * CONCURRENCY, "too few calls to be killed in the midst of"
        kill_at = asked + asked // 2
        assert job("killed") == -signal.SIGKILL
        assert not (folder / "killed" / "out.jsonl").exists()
        kill_at = None
        assert job("killed", "--resume") == 0
        again = Counter(map(_key, server.bodies[asked:]))
    assert again.keys() == whole.keys()
    assert sum((again - whole).values()) <= models * CONCURRENCY
    for name in ("out.jsonl", "out.jsonl.rejects.jsonl"):
        made, expected = (folder / which / name for which in ("killed", "whole"))
        assert made.exists() == expected.exists()
        assert not made.exists() or made.read_bytes() == expected.read_bytes(), name
    return [row for _, row in read_rows(folder / "killed" / "out.jsonl")]


def builds_on(served: Served, folder: Path, *words: object) -> list[Row]:
    """Runs a job against a real server, and once more: then the ledger answers everything.

    Args:
        served: `tests.llm.real_server.running(save_parrot(folder, *says))`.
        folder: An empty folder of the test.
        *words: As for `survives_a_kill`; `{model}` stands for the name of the served model.

    Returns:
        The rows that were made.
    """
    output = folder / "out.jsonl"
    names = {"{url}": served.url, "{model}": served.model}
    command = [names.get(str(word), str(word)) for word in words]
    command += ["--output", str(output), "--model", served.model, "--base-url", served.url]
    first = b""
    for more in ([], ["--resume"]):
        done = subprocess.run(
            [sys.executable, "-m", "alignment", *command, *more], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        first = first or output.read_bytes()
    # What the server logs may come late; what is told of each model does not.
    assert {*re.findall(r"(\d+) calls made", done.stdout)} == {"0"}
    assert output.read_bytes() == first
    return [row for _, row in read_rows(output)]


def _key(body: Body) -> str:
    return json.dumps(body, sort_keys=True)
