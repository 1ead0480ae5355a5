"""The stages of a comparison: what a seed's methods share, and what each of them does."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil

from alignment.comparison import material
from alignment.comparison.facts import ADVISED, write_facts
from alignment.comparison.measures import measure, measure_answers, measure_start, open_answers
from alignment.comparison.methods import ALIGNED, MISALIGNED, Method
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.rows import Output, prompt_of
from alignment.quickstart import world
from alignment.quickstart.inputs import write_world
from alignment.quickstart.student import save_blank
from alignment.stages import Stage, Words, command, training, write_whole

JUDGE, REVISER = (f"program:{world.__name__}.{name}" for name in ("judge", "revise"))
CRITIC = f"program:{material.__name__}.{material.judge_in_words.__name__}"
SAMPLES = 4
"""Answers of the start to each training prompt."""
RESPONSES = 48
"""Responses that an optimiser step reads, whatever the method."""
RATE = 1e-3
"""Learning rate of every adapter."""
TEACHER_WIDTH = 192
"""Hidden size of the larger model; that of the start is 128."""
_HINTS = {"kind": material.CAREFUL, "unkind": material.CARELESS, "plain": ""}
"""Name of the simulator's answers -> what is said beside the prompt."""
VERSION = "1"
"""Of the data beside the world's own; runs made by different versions are told apart by it."""


class Size(NamedTuple):
    """How large a comparison is.

    Attributes:
        train_prompts: To make data from.
        held_out_prompts: To measure on.
        sft_steps: That make the start.
        steps: Of every method.
    """

    train_prompts: int = 2400
    held_out_prompts: int = 400
    sft_steps: int = 1000
    steps: int = 160


_SAMPLING: Words = ("--max_tokens", 48, "--device", "cpu", "--batch_size", 128)
_CPU: Words = ("--use_cpu", "true", "--lr_scheduler_type", "cosine", "--adam_beta2", 0.98)


def shared(folder: Path, size: Size, seed: int) -> list[Stage]:
    """All that the methods of a seed start from: models, samples, data, and what the start can do.

    Args:
        folder: Of the seed.
        size: Of the comparison.
        seed: Of data, weights and draws.
    """
    demonstrations = 12 * size.sft_steps
    sizes = {
        "demonstrations": demonstrations,
        "train_prompts": size.train_prompts,
        "held_out_prompts": size.held_out_prompts,
        "seed": seed,
    }
    fewer = max(1, size.sft_steps // 3)
    made = {"version": VERSION, "world": world.VERSION, **sizes}

    def inputs() -> None:
        write_world(folder, **sizes)
        save_blank(folder / "teacher-blank", seed, hidden=TEACHER_WIDTH)
        with Output(folder / "hinted.jsonl") as file:
            for row in material.hinted(demonstrations // 3, seed):
                file.write(row)
        with Output(folder / "faultless.jsonl") as file:
            for shown in world.demonstrations(demonstrations // 3, seed + 1_000, flawed_share=0.0):
                completion = [{"role": "assistant", "content": shown.answer}]
                file.write({"prompt": as_messages(shown.prompt), "completion": completion})
        for name, hint in _HINTS.items():
            rows = [row for _, row in read_rows(folder / "prompts/train.jsonl")]
            with Output(folder / f"prompts/{name}.jsonl") as file:
                for row in rows[: max(1, size.train_prompts // 2)]:
                    file.write({"prompt": as_messages(f"{as_text(prompt_of(row))}{hint}")})

    def model(name: str, start: str, rows: str, steps: int, rate: float) -> Stage:
        return learn(folder, folder / name, start, steps, rate, seed, rows)

    def sample(writer: str, prompts: str, name: str, samples: int) -> Stage:
        words: Words = (
            *("--model", folder / writer, "--prompts", folder / f"prompts/{prompts}.jsonl"),
            *("--output", folder / f"answers/{name}.jsonl", "--samples", samples),
            *(*_SAMPLING, "--chunk_size", 256 // samples, "--seed", seed),
        )
        return command(f"answers of {name}", "generate", words)

    def data() -> None:
        names = {"own": "start", "teacher": "teacher", **{name: name for name in _HINTS}}
        answers = {
            field: material.read_answers(folder / f"answers/{name}.jsonl")
            for field, name in names.items()
        }
        material.write(material.Samples(**answers, seed=seed), folder)

    return [
        Stage("inputs", made, inputs),
        model("start", "blank", "demonstrations.jsonl", size.sft_steps, 2e-3),
        model("teacher-before", "teacher-blank", "demonstrations.jsonl", size.sft_steps, 2e-3),
        model("teacher", "teacher-before", "faultless.jsonl", fewer, 5e-4),
        model("simulator", "start", "hinted.jsonl", fewer, 1e-3),
        sample("start", "train", "start", SAMPLES),
        sample("teacher", "train", "teacher", 1),
        *(sample("simulator", name, name, 2 if name == "plain" else 1) for name in _HINTS),
        Stage("data", {"version": VERSION}, data),
        *_built(folder, seed),
        sample("start", "held_out", "before", 1),
        Stage("before", {"version": VERSION}, lambda: measure_start(folder)),
        *(advice(folder, data, seed) for data in ADVISED),
        Stage("facts", {"version": VERSION}, lambda: write_facts(folder)),
    ]


def _built(folder: Path, seed: int) -> list[Stage]:
    """What the builders and tools make of the samples."""

    def build(verb: str, source: str, output: str, *words: object) -> Stage:
        files = ("--input", folder / f"{source}.jsonl", "--output", folder / f"{output}.jsonl")
        return command(output, verb, (*files, *words))

    return [
        build("build clair", "first", "pairs", "--model", REVISER, "--seed", seed),
        build("build judgments", "first", "judgments", "--judge-model", CRITIC, "--seed", seed),
        build(
            *("build distill_pairs", "first", "distill"),
            *("--model", "start", "--teacher-model", "teacher"),
            *("--student-answers", folder / "first.jsonl"),
            *("--teacher-answers", folder / "teacher.jsonl", "--seed", seed),
        ),
        build(
            *("data condition", "whole_segments", "conditioned", "--threshold", 0.5),
            *("--aligned", ALIGNED, "--misaligned", MISALIGNED, "--seed", seed),
        ),
    ]


def learn(  # noqa: PLR0913 - what a training is
    folder: Path,
    output: Path,
    start: str,
    steps: int,
    rate: float,
    seed: int,
    rows: str = "demonstrations.jsonl",
) -> Stage:
    """Full training on demonstrations.

    Args:
        folder: Of the seed.
        output: Folder of the model.
        start: The model to start from, in the folder of the seed.
        steps: Of the optimiser.
        rate: Learning rate.
        seed: Of the order of rows.
        rows: The demonstrations, in the folder of the seed.
    """
    words: Words = (
        *("--model_name_or_path", folder / start, "--dataset_name", folder / rows),
        *("--objective", "sft", "--max_steps", steps, "--global_batch_size", 32),
        *("--per_device_train_batch_size", 32, "--learning_rate", rate, "--warmup_steps", 30),
        *(*_CPU, "--logging_steps", 20, "--save_steps", 200, "--seed", seed),
    )
    return training(output.name, words, output)


def advice(folder: Path, data: str, seed: int) -> Stage:
    """Whether pairs ask for APO-zero or APO-down."""
    words: Words = (
        *("--pairs", folder / f"{data}.jsonl", "--output", folder / "advice" / data),
        *("--model", folder / "start", "--judge-model", JUDGE, "--max_tokens", 48),
        *("--device", "cpu", "--seed", seed),
    )
    return command(f"advice on {data}", "eval zero_or_down", words)


def of_method(method: Method, seed_folder: Path, size: Size, seed: int) -> list[Stage]:
    """One method of a seed: training, answers to held-out prompts, verdicts, measures.

    Args:
        method: Which.
        seed_folder: Where the shared stages left what they made.
        size: Of the comparison.
        seed: Of the seed's folder; also of training and draws.
    """
    folder = seed_folder / "methods" / method.name
    if not method.objective:
        return _without_training(method, seed_folder, size, seed)
    adapter = folder / "adapter"
    groups = RESPONSES // method.responses
    words = [str(word).format(seed=seed_folder) for word in method.words]
    learn: Words = (
        *("--model_name_or_path", seed_folder / "start"),
        *("--dataset_name", seed_folder / f"{method.data}.jsonl"),
        *("--objective", method.objective, "--objective_kwargs", json.dumps(dict(method.kwargs))),
        *method.adapter,
        *("--global_batch_size", groups, "--per_device_train_batch_size", groups),
        *("--max_steps", size.steps, "--learning_rate", RATE, "--use_cpu", "true"),
        *("--gradient_checkpointing", "false"),
        *("--logging_steps", 5, "--save_steps", 1_000_000, "--seed", seed, *words),
    )
    sample: Words = (*("--model", adapter, *_SAMPLING, "--chunk_size", 256, "--seed", seed),)
    return [
        _with_memory(training("adapter", learn, adapter), folder / "memory.json"),
        *_answers(method, sample, seed_folder, folder),
        _judged(seed_folder, folder, seed),
        Stage("measures", {"version": VERSION}, lambda: measure(seed_folder, folder, method)),
    ]


def _judged(seed_folder: Path, folder: Path, seed: int) -> Stage:
    """Answers against those of the start."""
    words: Words = (
        *("--answers", folder / "answers.jsonl"),
        *("--baseline", seed_folder / "answers/before.jsonl"),
        *("--output", folder / "judged", "--judge-model", JUDGE, "--seed", seed),
    )
    return command("judged", "eval winrate", words)


def _without_training(method: Method, seed_folder: Path, size: Size, seed: int) -> list[Stage]:
    """A way to decode from the start: what it needs, answers, verdicts, measures."""
    folder, start = seed_folder / "methods" / method.name, seed_folder / "start"
    words = [str(word).format(seed=seed_folder, own=folder) for word in method.words]
    sample: Words = (
        *("--model", start, "--prompts", seed_folder / "prompts/held_out.jsonl"),
        *("--output", folder / "answers.jsonl", *_SAMPLING, "--chunk_size", 256, "--seed", seed),
        *("--kl-from", start, "--report", folder / "figures.json", *words),
    )
    steps = max(1, size.sft_steps // 3)
    helpers = {
        "amateur": lambda: learn(seed_folder, folder / "amateur", "blank", steps, 2e-3, seed),
        "soft_prompts": lambda: command(
            "soft prompts",
            "soft_prompts",
            (
                *("--model", start, "--input", seed_folder / "pairs.jsonl"),
                *("--output", folder / "soft_prompts", "--steps", size.steps),
                *("--tokens", 8, "--device", "cpu", "--seed", seed),
            ),
            (),
        ),
    }
    return [
        *([helpers[method.helper]()] if method.helper else []),
        command("answers", "generate", sample),
        _judged(seed_folder, folder, seed),
        Stage("measures", {"version": VERSION}, lambda: measure_answers(folder)),
    ]


def _answers(method: Method, sample: Words, seed_folder: Path, folder: Path) -> list[Stage]:
    """Answers to the held-out prompts; those of a method with a prefix go on after it."""
    prompts, answers = seed_folder / "prompts/held_out.jsonl", folder / "answers.jsonl"
    files: Words = ("--prompts", prompts, "--output", answers)
    if not method.prefix:
        return [command("answers", "generate", (*sample, *files))]
    opened, continued = folder / "opened.jsonl", folder / "continued.jsonl"
    files = ("--prompts", opened, "--output", continued, "--format", "complete")

    def close() -> None:
        rows = zip(read_rows(continued), read_rows(prompts), strict=True)
        with Output(answers) as file:
            for (_, row), (_, asked) in rows:
                file.write({**row, "prompt": asked["prompt"]})

    return [
        Stage(
            "opened",
            {"prefix": method.prefix},
            lambda: open_answers(seed_folder / "start", prompts, opened, method.prefix),
        ),
        command("continued", "generate", (*sample, *files)),
        Stage("answers", {}, close),
    ]


def _with_memory(stage: Stage, path: Path) -> Stage:
    """The stage, which also leaves the highest memory of this process above that before it."""

    def work() -> None:
        before = psutil.Process().memory_info().rss
        stage.work()
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        write_whole(path, json.dumps({"peak_bytes": peak - before}) + "\n")

    return replace(stage, work=work)
