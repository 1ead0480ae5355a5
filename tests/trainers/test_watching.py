"""A run stops at losses that are no number, names rows behind spikes, and looks at its answers."""

import gc
import json
import logging
import math
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignment.cli import UserError
from alignment.objectives.apo import APO
from alignment.objectives.base import GroupTerms, ObjectiveOutput
from alignment.trainers import watching
from alignment.trainers.base import GroupTrainer
from alignment.trainers.probe import NGRAM, answers, described, repetition
from alignment.trainers.verdicts import new_alarms
from alignment.trainers.watching import OFFENDING, not_finite
from tests.tiny import EOS_ID
from tests.trainers.runs import build, logged, lora, pair_rows, run, small_model, trained_weights


def file_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- Losses that are no number ----


@dataclass(frozen=True)
class Breaking(APO):
    """Gives no number for the second group of a batch, from a step on."""

    step: int = 2
    value: str = "nan"

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        output = super().__call__(terms)
        if terms.progress.step < self.step:
            return output
        (term,) = output.terms
        wrong = torch.zeros_like(term.sums)
        wrong[1] = float(self.value)
        return replace(output, terms=(term._replace(sums=term.sums + wrong),))


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("size", [4, 2], ids=["one-call", "two-calls"])
def test_a_loss_that_is_no_number_stops_the_run_and_its_rows_are_saved(
    value: str, size: int, tmp_path: Path
):
    """Two calls of two pairs have one such pair each; what the first call gave is not learnt."""
    changes: dict[str, Any] = {"lr_scheduler_type": "constant", "per_device_train_batch_size": size}
    changes["gradient_accumulation_steps"] = 4 // size
    trainer = build(tmp_path, objective=Breaking(value=value), **changes)
    before = run(tmp_path / "before", max_steps=2, **changes)
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    path = tmp_path / OFFENDING
    count = 4 // size
    assert message.startswith(f"step 3: the loss is {value} in {count} rows (train[")
    assert f"all saved to {path}; usually helps: a lower `learning_rate`" in message
    assert "\n" not in message
    rows = file_rows(path)
    bins = trainer.plan.step_bins(2, 0)
    groups = [trainer.train_dataset[members[1]] for members in bins]
    assert [row["origin"] for row in rows] == [group.origin for group in groups]
    source = pair_rows(12)[int(rows[0]["origin"][6:-1])]
    assert rows[0]["prompt"] == source["prompt"]
    assert [
        text.startswith(source[side])
        for text, side in zip(rows[0]["responses"], ("chosen", "rejected"), strict=True)
    ] == [True, True]
    assert (rows[0]["step"], rows[0]["value"]) == (3, value)
    assert trainer.state.global_step == 2
    torch.testing.assert_close(trained_weights(trainer), trained_weights(before), rtol=0, atol=1e-6)


@dataclass(frozen=True)
class Watched(APO):
    """Looks whether what it gave before is still held by anyone."""

    given: list[Any] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        gc.collect()
        self.held.append(sum(reference() is not None for reference in self.given))
        output = super().__call__(terms)
        self.given.append(weakref.ref(output.terms[0].sums))
        return output


def test_no_graph_is_held_until_the_step_ends(tmp_path: Path):
    objective = Watched()
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    run(tmp_path, objective=objective, max_steps=2, preflight=False, **sizes)
    assert len(objective.held) >= 8
    assert not any(objective.held)


class _BrokenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


@dataclass(frozen=True)
class BrokenBackwards(APO):
    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        output = super().__call__(terms)
        (term,) = output.terms
        return replace(output, terms=(term._replace(sums=_BrokenGradient.apply(term.sums)),))


def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_learnt_from(tmp_path: Path):
    trainer = build(tmp_path, objective=BrokenBackwards())
    before = trained_weights(trainer).clone()
    with pytest.raises(UserError, match=r"step 1: the gradient norm is (nan|inf) in 4 rows"):
        trainer.train()
    assert torch.equal(trained_weights(trainer), before)
    assert len(file_rows(tmp_path / OFFENDING)) == 4


def test_a_weight_that_breaks_during_the_run_is_named_as_the_cause(tmp_path: Path):
    class Break(watching.Watch):
        def gradient(self, norm: Any) -> None:
            super().gradient(norm)
            if self._trainer.state.global_step == 1:
                weight = dict(self._trainer.model.named_parameters())
                next(w for n, w in weight.items() if "lora_B" in n).data[0, 0] = math.nan

    trainer = build(tmp_path)
    trainer._watch = Break(trainer)
    with pytest.raises(UserError, match=r"the weight `.*lora_B.*` is no number itself"):
        trainer.train()


def test_weights_are_searched_without_mistaking_a_large_sum(tmp_path: Path):
    """Each value is finite in float16, their sum is not."""
    model = nn.Linear(4, 4, bias=False).half()
    model.weight.data.fill_(60000.0)
    assert not_finite(model) is None
    model.weight.data[1, 2] = math.inf
    assert not_finite(model) == "weight"


# ---- Spikes ----


def test_a_spike_of_the_gradient_is_told_with_its_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Ten norms of 1, then 30, whose step is the eleventh."""
    norms = iter([1.0] * 10 + [30.0, 1.0])
    monkeypatch.setattr(
        GroupTrainer.__mro__[1], "_get_grad_norm", lambda *_: next(norms), raising=False
    )
    trainer = run(tmp_path, max_steps=12)
    rows = [trainer.train_dataset[int(i)].origin for i in trainer.plan.step(10)]
    (line,) = [row for row in file_rows(tmp_path / "metrics.jsonl") if "grad_norm_spike" in row]
    assert line == {"step": 11, "grad_norm_spike": 30.0, "grad_norm_median": 1.0, "rows": rows}
    assert (
        "step 11: gradient norm 30, 30 times the median of the last 10 steps (1); "
        f"its rows: {', '.join(rows)}"
    ) in caplog.text


# ---- The probe ----


def test_repetition_is_the_share_of_pieces_that_stand_earlier():
    """`1 2 3 4 1 2 3 4` has five pieces of four tokens, of which the last repeats the first."""
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([1] * 8) == pytest.approx(4 / 5)
    assert repetition(list(range(NGRAM - 1))) == 0.0


def test_answers_are_described_by_ending_length_and_repetition():
    found = described([[5, 6, 2], [7] * 8, [8, 9]], ends=[2, 9])
    assert found["probe/stop_rate"] == pytest.approx(2 / 3)
    assert found["probe/length"] == pytest.approx(13 / 3)
    assert found["probe/repetition"] == pytest.approx(4 / 5 / 3)


def test_a_probe_logs_what_the_policy_writes_and_leaves_the_run_as_it_was(tmp_path: Path):
    changes: dict[str, Any] = {"activation_checkpointing": True, "eval_dataset": pair_rows(3)}
    quiet = run(tmp_path / "quiet", **changes)
    probe = {"probe_steps": 2, "probe_prompts": 2, "probe_max_new_tokens": 6}
    trainer = run(tmp_path / "probed", **changes, **probe)
    rows = [r for r in file_rows(tmp_path / "probed/metrics.jsonl") if "probe/length" in r]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert all(1 <= row["probe/length"] <= 6 for row in rows)
    assert logged(trainer) == logged(quiet)
    assert torch.equal(trained_weights(trainer), trained_weights(quiet))
    last = described(answers(trainer, [EOS_ID]), [EOS_ID])
    assert {name: rows[-1][name] for name in last} == last


def test_a_probe_answers_as_the_model_does(tmp_path: Path):
    trainer = build(tmp_path, probe_steps=1, probe_prompts=2, probe_max_new_tokens=5)
    trainer.model_wrapped = trainer.model
    model = small_model()
    for written, index in zip(answers(trainer, [EOS_ID]), range(2), strict=True):
        prompt = torch.tensor([list(trainer.train_dataset[index].prefix)])
        expected = model.generate(prompt, max_new_tokens=5, do_sample=False)
        assert written == expected[0, prompt.shape[1] :].tolist()


def probe(stop: float, repeated: float, length: float) -> dict[str, float]:
    named = {"stop_rate": stop, "repetition": repeated, "length": length}
    return {f"probe/{name}": value for name, value in named.items()}


@pytest.mark.parametrize(
    ("last", "name"),
    [
        (probe(0.6, 0.1, 20.0), "answers do not end"),
        (probe(0.9, 0.4, 20.0), "answers repeat themselves"),
        (probe(0.9, 0.1, 50.0), "answers grow"),
        (probe(0.8, 0.2, 30.0), None),
    ],
)
def test_answers_that_get_worse_raise_one_alarm(last: dict[str, float], name: str | None):
    first = probe(1.0, 0.1, 20.0)
    found = [alarm.name for alarm in new_alarms([first, {"loss": 1.0}, last])]
    assert found == ([] if name is None else [name])
    assert new_alarms([first, last, last]) == []
    assert new_alarms([first]) == []


def test_an_alarm_stands_in_the_log_and_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    found = iter([[[2]], [[7] * 6]])
    monkeypatch.setattr("alignment.trainers.probe.answers", lambda *_: next(found))
    caplog.set_level(logging.WARNING)
    run(tmp_path, max_steps=2, probe_steps=2)
    (row,) = [r for r in file_rows(tmp_path / "metrics.jsonl") if r.get("verdicts")]
    assert row["step"] == 2
    assert [text.split(":")[0] for text in row["verdicts"]] == [
        "answers do not end",
        "answers repeat themselves",
        "answers grow",
    ]
    assert "step 2: answers do not end: 0% of the probe's answers end, 100% at the" in caplog.text


def test_a_probe_of_a_fresh_adapter_needs_a_positive_number(tmp_path: Path):
    with pytest.raises(ValueError, match="probe_steps is 0; it must be at least 1"):
        build(tmp_path, peft_config=lora(), probe_steps=0)
