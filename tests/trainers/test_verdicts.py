"""Verdicts on worked histories: 20 logs, of which the first five and the last five are averaged."""

import json

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from alignment.trainers.callbacks import MetricsFile
from alignment.trainers.verdicts import WINDOW, new_verdicts, verdicts

LOGS = 20


def history(**ends: tuple[float, float]) -> list[dict[str, float]]:
    """Each metric moves in a straight line from its first to its last value."""
    names = {name.replace("__", "/"): pair for name, pair in ends.items()}
    return [
        {
            "loss": 0.5,
            **{name: a + (b - a) * step / (LOGS - 1) for name, (a, b) in names.items()},
        }
        for step in range(LOGS)
    ]


def names(logs: list[dict[str, float]]) -> list[str]:
    return [verdict.name for verdict in verdicts(logs)]


def test_both_sides_falling_is_likelihood_displacement():
    """The last five of 20 logs of a line from 0 to -0.19 average -0.17; to -0.38, -0.34."""
    logs = history(
        logratios_per_token__chosen=(0.0, -0.19), logratios_per_token__rejected=(0.0, -0.38)
    )
    (verdict,) = verdicts(logs)
    assert verdict.name == "likelihood displacement"
    assert "chosen -0.170, rejected -0.340 nats per token" in verdict.text


def test_without_a_reference_the_shift_is_counted_from_the_first_logs():
    """From -2 to -2.19 the first five average -2.02 and the last five -2.17: -0.15."""
    logs = history(logps_per_token__chosen=(-2.0, -2.19), logps_per_token__rejected=(-2.0, -2.38))
    (verdict,) = verdicts(logs)
    assert verdict.name == "likelihood displacement"
    assert "chosen -0.150, rejected -0.300 nats per token" in verdict.text


def test_a_margin_that_only_the_rejected_side_makes_is_named():
    logs = history(
        logratios_per_token__chosen=(0.0, 0.001), logratios_per_token__rejected=(0.0, -0.38)
    )
    (verdict,) = verdicts(logs)
    assert verdict.name == "margin from the rejected side only"
    assert "chosen +0.000, rejected -0.340" in verdict.text


def test_a_margin_that_both_sides_make_is_healthy():
    logs = history(
        logratios_per_token__chosen=(0.0, 0.19), logratios_per_token__rejected=(0.0, -0.38)
    )
    assert verdicts(logs) == []


def test_noise_around_no_change_is_no_verdict():
    """Deviations of 0.1 leave a standard error of 0.049 in a mean of five, more than 0.06 / 2."""
    logs = history(logps_per_token__chosen=(-2.0, -2.08), logps_per_token__rejected=(-2.0, -2.08))
    assert names(logs) == ["likelihood displacement"]
    for step, entry in enumerate(logs):
        for side in ("chosen", "rejected"):
            entry[f"logps_per_token/{side}"] += 0.1 if step % 2 else -0.1
    assert names(logs) == []


def test_rewards_that_no_longer_give_a_gradient_are_saturated():
    """Margins 7.58 to 9.5 average 8.5 at the end, where 2 sigmoid(-8.5) is 0.04%."""
    logs = history(
        rewards__margins=(0.0, 9.5), rewards__accuracies=(1.0, 1.0), grad_norm=(1.9, 0.0)
    )
    (verdict,) = verdicts(logs)
    assert verdict.name == "saturated rewards"
    assert "margin 8.5, accuracy 1.00, gradient norm 1.7 before and 0.2 now" in verdict.text
    assert "0.04% of its first gradient" in verdict.text


@pytest.mark.parametrize(
    "spoiled",
    [
        {"rewards__margins": (0.0, 4.0)},
        {"rewards__accuracies": (0.5, 0.9)},
        {"grad_norm": (1.9, 1.9)},
    ],
    ids=["small margins", "some pairs wrong", "gradients as large as before"],
)
def test_rewards_that_still_teach_are_not_saturated(spoiled: dict[str, tuple[float, float]]):
    saturated = {
        "rewards__margins": (0.0, 9.5),
        "rewards__accuracies": (1.0, 1.0),
        "grad_norm": (1.9, 0.0),
    }
    assert verdicts(history(**{**saturated, **spoiled})) == []


def test_an_ending_that_becomes_unlikely_is_named():
    """From -0.1 to -2 the first five average -0.3 and the last five -1.8: exp(-1.5) is 0.22."""
    (verdict,) = verdicts(history(logps_last_token__chosen=(-0.1, -2.0)))
    assert verdict.name == "responses no longer end"
    assert "has -1.80 nats, -0.30 at the start, 0.22 times the probability" in verdict.text


def test_an_ending_that_becomes_likely_is_healthy():
    assert verdicts(history(logps_last_token__chosen=(-2.0, -0.1))) == []


def test_every_verdict_is_one_line():
    logs = history(
        logratios_per_token__chosen=(0.0, -0.19),
        logratios_per_token__rejected=(0.0, -0.38),
        rewards__margins=(0.0, 9.5),
        rewards__accuracies=(1.0, 1.0),
        logps_last_token__chosen=(-0.1, -2.0),
    )
    found = verdicts(logs)
    assert len(found) == 3
    assert [str(verdict) for verdict in found if "\n" in str(verdict)] == []


def test_a_short_history_and_other_entries_give_no_verdict():
    logs = history(logps_last_token__chosen=(-0.1, -2.0))
    short = [logs[0]] * WINDOW + [logs[-1]] * (WINDOW - 1)
    assert verdicts([]) == verdicts(short) == []
    assert verdicts([*short, {"eval_loss": 1.0}]) == []
    assert names([*short, logs[-1]]) == ["responses no longer end"]


def test_numbers_that_are_not_finite_give_no_verdict():
    logs = history(logps_last_token__chosen=(-0.1, -2.0))
    logs[-1]["logps_last_token/chosen"] = float("nan")
    assert verdicts(logs) == []


def test_a_verdict_is_new_once_per_occurrence():
    healthy = {"loss": 0.5, "logps_last_token/chosen": -0.1}
    ill = {"loss": 0.5, "logps_last_token/chosen": -5.0}
    logs = [healthy] * 10 + [ill] * 10 + [healthy] * 20 + [ill] * 10
    told = [n for n in range(len(logs) + 1) if new_verdicts(logs[:n])]
    # Up to two unlikely endings in five are within the noise; three are not.
    assert told == [10 + 3, 40 + 3]


def test_a_verdict_stands_in_the_line_of_its_log_and_is_printed_once(
    tmp_path, caplog: pytest.LogCaptureFixture
):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    args, state = TrainingArguments(output_dir=str(tmp_path)), TrainerState()
    for step, logs in enumerate(history(logps_last_token__chosen=(-0.1, -2.0)), start=1):
        state.global_step = step
        state.log_history.append(logs)
        file.on_log(args, state, TrainerControl(), logs=logs)
    file.on_log(args, state, TrainerControl(), logs={"train_loss": 0.5})
    rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    ((step, told),) = [(row["step"], row["verdicts"]) for row in rows if "verdicts" in row]
    assert told == [str(verdict) for verdict in verdicts(state.log_history[:step])]
    assert [record.message for record in caplog.records] == [f"step {step}: {told[0]}"]
