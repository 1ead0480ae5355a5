"""Memory and time of a step on the head, chunked against full logits.

    python -m benchmarks.divergence [--json FILE]

One step is the loss and its gradient by the student's hidden states, for given hidden states of
student and teacher. Both sides use the same objective; they differ in how log-probs and divergences
come about. Every measurement is a process of its own, the sides take turns, and memory is the
high-water mark minus the level after loading.

In float32 most of the gradients' difference is the rounding of the dense side; `--dtype float64`
shows what is left without it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from alignment.core.divergences import HeadInput, compare_tokens, token_divergences
from alignment.core.logps import token_logps
from alignment.objectives.base import (
    DivergenceSpec,
    GroupTerms,
    Objective,
    Progress,
    mean_tokens,
    teacher_mean_logps,
)
from alignment.objectives.cpo import CPO
from alignment.objectives.distillm2 import DistiLLM2
from alignment.objectives.gkd import GKD
from benchmarks._measure import Growth, in_fresh_process

METHODS: dict[str, Objective] = {
    "distillm2": DistiLLM2(skew="fixed"),
    "distillm2-adaptive": DistiLLM2(),
    "gkd": GKD(),
    "cpo": CPO(),
}
SIDES = ("chunked", "dense")


@dataclass(frozen=True)
class Step:
    """What one process measures.

    Attributes:
        method: A key of `METHODS`.
        side: `chunked` or `dense`.
        vocabulary: Rows of both heads.
        tokens: Response tokens, in two pairs.
        hidden: Width of the student; the default is that of Qwen2.5-0.5B.
        teacher_hidden: Width of the teacher; the default is that of Qwen2.5-1.5B.
        train_head: Whether the student's head takes gradient, as without LoRA.
        device: `cpu` or `cuda`.
        threads: Of the CPU; 0 leaves torch its default.
        dtype: Of hidden states and heads.
    """

    method: str
    side: str
    vocabulary: int
    tokens: int = 512
    hidden: int = 896
    teacher_hidden: int = 1536
    train_head: bool = False
    device: str = "cpu"
    threads: int = 0
    dtype: str = "float32"


class Loaded(NamedTuple):
    """What is in memory before a step."""

    student: HeadInput
    teacher: HeadInput
    targets: Tensor
    labels: GroupTerms


def load(step: Step) -> Loaded:
    """Random heads, and hidden states that favour the targets.

    The teacher favours chosen, the student rejected tokens. The labels say second epoch and hold a
    little more than the mean gaps as anchors, so that skews are inside their clip.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, step.dtype))
    targets = torch.randint(step.vocabulary, (step.tokens,), device=step.device)
    response_of_token = torch.arange(step.tokens, device=step.device) * 4 // step.tokens
    role = torch.tensor([1, -1, 1, -1], device=step.device)
    sides = []
    for size, favour in ((step.hidden, (9.0, 11.0)), (step.teacher_hidden, (12.0, 9.0))):
        weight = torch.empty(step.vocabulary, size, device=step.device).normal_(0, 2 / size**0.5)
        hidden = torch.empty(step.tokens, size, device=step.device).normal_()
        rows = weight[targets]
        boost = torch.tensor(favour, device=step.device)[(role[response_of_token] < 0).long()]
        hidden += boost[:, None] * rows / rows.square().sum(1, keepdim=True)
        sides.append(HeadInput(hidden, weight))
    student, teacher = sides
    labels = GroupTerms(
        logps=token_logps(student.hidden, student.weight, targets),
        teacher_logps=token_logps(teacher.hidden, teacher.weight, targets),
        response_of_token=response_of_token,
        group_of_response=torch.tensor([0, 0, 1, 1], device=step.device),
        role=role,
        progress=Progress(step=60, max_steps=100, epoch=1.2, epochs=2),
    )
    gaps = role * (teacher_mean_logps(labels).exp() - mean_tokens(labels.logps, labels).exp())
    state = {
        "anchors/chosen": 1.03 * gaps[role > 0].mean(),
        "anchors/rejected": 1.03 * gaps[role < 0].mean(),
    }
    student.hidden.requires_grad_()
    student.weight.requires_grad_(step.train_head)
    return Loaded(student, teacher, targets, replace(labels, state=state))


def chunked_terms(objective: Objective, loaded: Loaded) -> GroupTerms:
    """Log-probs and divergences as `alignment.core.scoring` computes them."""
    student, teacher, targets, labels = loaded
    if "teacher" not in objective.needs:
        return replace(labels, logps=token_logps(student.hidden, student.weight, targets))
    use = objective.logps_use(labels)
    if use != "gradient":

        def specs_of(logps: Tensor, teacher_logps: Tensor) -> Sequence[DivergenceSpec]:
            return objective.divergences(replace(labels, logps=logps, teacher_logps=teacher_logps))

        specs = objective.divergences(labels) if use == "logged" else specs_of
        found = compare_tokens(student, teacher, labels.response_of_token, specs, targets=targets)
        return replace(labels, **found._asdict())
    with torch.no_grad():
        teacher_logps = token_logps(teacher.hidden, teacher.weight, targets)
    logps = token_logps(student.hidden, student.weight, targets)
    terms = replace(labels, logps=logps, teacher_logps=teacher_logps)
    specs = objective.divergences(terms)
    values = token_divergences(student, teacher, labels.response_of_token, specs)
    return replace(terms, divergences=values)


def dense_terms(objective: Objective, loaded: Loaded) -> GroupTerms:
    """The same from full logits, as trainers without a chunked head write it."""
    student, teacher, targets, labels = loaded
    logits = student.hidden @ student.weight.T
    if "teacher" not in objective.needs:
        chosen_logits = logits.gather(1, targets[:, None]).squeeze(1)
        return replace(labels, logps=chosen_logits - logits.logsumexp(1))
    log_q = logits.log_softmax(1)
    with torch.no_grad():
        log_p = (teacher.hidden @ teacher.weight.T).log_softmax(1)
    del logits
    logps, teacher_logps = (x.gather(1, targets[:, None]).squeeze(1) for x in (log_q, log_p))
    terms = replace(labels, logps=logps, teacher_logps=teacher_logps)
    columns = []
    for spec in objective.divergences(terms):
        where = torch.ones_like(labels.role, dtype=torch.bool) if spec.where is None else spec.where
        (index,) = where[labels.response_of_token].nonzero(as_tuple=True)
        part = slice(None) if spec.where is None else index
        skew = spec.skew[labels.response_of_token[index], None]
        value = dense_divergence(spec, log_p[part], log_q[part], skew)
        columns.append(value.new_zeros(targets.shape).index_add(0, index, value))
    return replace(terms, divergences=torch.stack(columns, 1))


def dense_divergence(spec: DivergenceSpec, log_p: Tensor, log_q: Tensor, skew: Tensor) -> Tensor:
    """(n,) divergences from log-probs (n, V), skew (n, 1)."""
    if spec.kind in ("skewed_forward_kl", "jensen_shannon"):
        log_m = torch.logaddexp(log_p + skew.log(), log_q + (-skew).log1p())
        forward = (log_p.exp() * (log_p - log_m)).sum(1)
        if spec.kind == "skewed_forward_kl":
            return forward
        reverse = (log_q.exp() * (log_q - log_m)).sum(1)
        weight = skew.squeeze(1)
        return weight * forward + (1 - weight) * reverse
    inside = log_q.detach() if spec.kind == "anchored_reverse_kl" else log_q
    log_m = torch.logaddexp(log_p + (-skew).log1p(), inside + skew.log())
    return (log_q.exp() * (log_q - log_m)).sum(1)


def measure(step: Step, results: Path) -> dict[str, float]:
    """Runs the step twice; the first one is for memory, the second for time.

    Loss and gradient are saved to `results`.
    """
    if step.threads:
        torch.set_num_threads(step.threads)
    terms_of = chunked_terms if step.side == "chunked" else dense_terms
    objective = METHODS[step.method]
    loaded = load(step)
    growth = Growth(step.device)
    seconds = 0.0
    for _ in range(2):
        loaded.student.hidden.grad = loaded.student.weight.grad = None
        start = time.perf_counter()
        loss = objective(terms_of(objective, loaded)).loss()
        loss.backward()
        if step.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    grad = loaded.student.hidden.grad
    assert grad is not None
    torch.save({"loss": loss.detach().cpu(), "grad": grad.cpu()}, results)
    return {"seconds": seconds, "megabytes": growth.megabytes()}


def compare(step: Step, rounds: int) -> dict[str, float | str]:
    """One row of the table: medians over `rounds` turns of both sides."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.pt" for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                setting = [asdict(replace(step, side=side)), str(files[side])]
                runs[side].append(in_fresh_process("benchmarks.divergence", setting))
        chunked, dense = (torch.load(files[side]) for side in SIDES)
    row: dict[str, float | str] = {"method": step.method, "vocabulary": step.vocabulary}
    for quantity in ("megabytes", "seconds"):
        values = {side: median(run[quantity] for run in runs[side]) for side in SIDES}
        row |= {f"{quantity}_{side}": round(values[side], 3) for side in SIDES}
        row[f"{quantity}_ratio"] = round(values["chunked"] / values["dense"], 3)
    scale = dense["grad"].abs().max()
    row["loss_difference"] = float((chunked["loss"] - dense["loss"]).abs() / dense["loss"].abs())
    row["gradient_difference"] = float((chunked["grad"] - dense["grad"]).abs().max() / scale)
    return row


HEADER = (
    f"{'method':18} {'vocab':>7} | {'MB':>6} {'dense':>6} {'ratio':>5} | {'s':>7} {'dense':>7} "
    f"{'ratio':>5} | {'loss':>7} {'gradient':>8}"
)


def line(row: dict[str, float | str]) -> str:
    """A row of the table as text; differences are relative, the gradient's to its largest entry."""
    return (
        f"{row['method']:18} {row['vocabulary']:7} | {row['megabytes_chunked']:6.0f} "
        f"{row['megabytes_dense']:6.0f} {row['megabytes_ratio']:5.2f} | "
        f"{row['seconds_chunked']:7.3f} {row['seconds_dense']:7.3f} {row['seconds_ratio']:5.2f} | "
        f"{row['loss_difference']:7.0e} {row['gradient_difference']:8.0e}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one row for each method and vocabulary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.divergence", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[32_000, 151_936])
    parser.add_argument("--tokens", type=int, default=Step.tokens)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-head", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        setting, file = json.loads(options.one)
        print(json.dumps(measure(Step(**setting), Path(file))))
        return
    rows = []
    print(HEADER, flush=True)
    for vocabulary in options.vocabulary:
        for method in options.methods:
            step = Step(
                *(method, "dense", vocabulary, options.tokens),
                train_head=options.train_head,
                device=options.device,
                threads=options.threads,
                dtype=options.dtype,
            )
            rows.append(compare(step, options.rounds))
            print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
