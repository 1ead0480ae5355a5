"""Why a model gets worse, read off the logged metrics: one line with the numbers and a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WINDOW = 5
"""Logs at each end of the history that are averaged; twice as many are needed for any verdict."""

SHIFT = 0.02
"""Nats per token from which the likelihood of a side has moved: a factor of 400 in 300 tokens."""

CHOSEN_SHARE = 0.1
"""Share of the margin below which the chosen side adds nothing to it."""

SATURATED = 0.01
"""Share of its first gradient below which a logistic pair loss no longer teaches."""

END_SHIFT = 0.5
"""Nats by which the end of a response has become too unlikely: a factor of 0.6."""


STOP_FALL = 0.3
"""Share of the probe's answers that no longer end, from which that is told."""

REPETITION_RISE = 0.2
"""Rise of the share of repeated pieces in the probe's answers from which that is told."""

GROWTH = 2.0
"""How many times as long as at the start the probe's answers are when that is told."""


class Verdict(NamedTuple):
    """What went wrong.

    Attributes:
        name: The same for every occurrence.
        text: What is seen, with the numbers, and what usually helps; without line breaks.
    """

    name: str
    text: str

    def __str__(self) -> str:
        """One line for the log."""
        return f"{self.name}: {self.text}"


class _Trend(NamedTuple):
    """A metric's mean at the start and now.

    Attributes:
        first: Over the first logs.
        last: Over the last logs.
        error: Standard error of the difference.
    """

    first: float
    last: float
    error: float

    def moved(self, least: float) -> float:
        """The change; 0 where it is below `least` or within the noise of two standard errors."""
        change = self.last - self.first
        return change if abs(change) > max(least, 2 * self.error) else 0.0


def verdicts(history: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """What is going wrong at the end of a history of logs.

    Args:
        history: What training logged, oldest first; entries without `loss` are passed over. Read
            are `logratios_per_token/*` (without a reference `logps_per_token/*`),
            `logps_last_token/chosen`, `rewards/margins`, `rewards/accuracies` and `grad_norm`.

    Returns:
        One verdict for each thing; none in the first `2 * WINDOW` logs.
    """
    logs = [entry for entry in history if "loss" in entry]
    found = (_sides(logs), _saturation(logs), _endings(logs))
    return [verdict for verdict in found if verdict is not None]


def new_verdicts(history: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """The verdicts that the last log brings: none that held in the `WINDOW` logs before it."""
    logs = [entry for entry in history if "loss" in entry]
    earlier = (verdicts(logs[:-back]) for back in range(1, WINDOW + 1))
    known = {verdict.name for found in earlier for verdict in found}
    return [verdict for verdict in verdicts(logs) if verdict.name not in known]


def alarms(history: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """What is wrong with the answers of the last probe, compared with those of the first.

    Args:
        history: What training logged, oldest first; entries without `probe/stop_rate` are passed
            over.
    """
    probes = [entry for entry in history if "probe/stop_rate" in entry]
    if len(probes) < 2:
        return []
    first, last = probes[0], probes[-1]
    stops, repeats, length = (
        (first[f"probe/{name}"], last[f"probe/{name}"])
        for name in ("stop_rate", "repetition", "length")
    )
    found = []
    if stops[1] <= stops[0] - STOP_FALL:
        found.append(
            Verdict(
                "answers do not end",
                f"{stops[1]:.0%} of the probe's answers end, {stops[0]:.0%} at the start. Usually "
                "helps: a lower learning rate, a likelihood term (`cpo`), `truncation_mode: drop`",
            )
        )
    if repeats[1] >= repeats[0] + REPETITION_RISE:
        found.append(
            Verdict(
                "answers repeat themselves",
                f"{repeats[1]:.0%} of the pieces of the probe's answers are repeated, "
                f"{repeats[0]:.0%} at the start. Usually helps: a lower learning rate, a larger "
                "`beta`, fewer epochs",
            )
        )
    if length[1] >= GROWTH * length[0]:
        found.append(
            Verdict(
                "answers grow",
                f"the probe's answers have {length[1]:.0f} tokens, {length[0]:.0f} at the start. "
                "Usually helps: pairs whose chosen side is not the longer one, length "
                "normalisation (`simpo`)",
            )
        )
    return found


def new_alarms(history: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """The alarms that the last probe brings: none that the probe before it brought."""
    probes = [entry for entry in history if "probe/stop_rate" in entry]
    known = {verdict.name for verdict in alarms(probes[:-1])}
    return [verdict for verdict in alarms(probes) if verdict.name not in known]


def _sides(logs: Sequence[Mapping[str, float]]) -> Verdict | None:
    """Where the likelihood of chosen and of rejected responses has gone, per token."""
    chosen, rejected = (_shift(logs, side) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None or rejected >= 0:
        return None
    seen = f"chosen {chosen:+.3f}, rejected {rejected:+.3f} nats per token since the start"
    if chosen < 0:
        return Verdict(
            "likelihood displacement",
            f"{seen}: both become less likely, so the probability goes to other texts. Usually "
            "helps: a lower learning rate, pairs that differ in less, an anchored objective "
            "(`apo`, `nca`) or one with a likelihood term (`cpo`). Meant only with APO-down",
        )
    if chosen < CHOSEN_SHARE * (chosen - rejected):
        return Verdict(
            "margin from the rejected side only",
            f"{seen}: the model learns what to avoid, not what to say. Usually helps: chosen "
            "responses that the model itself could write, an anchored objective (`apo`, `nca`) or "
            "one with a likelihood term (`cpo`)",
        )
    return None


def _saturation(logs: Sequence[Mapping[str, float]]) -> Verdict | None:
    margin, accuracy, norm = (
        _trend(logs, name) for name in ("rewards/margins", "rewards/accuracies", "grad_norm")
    )
    if margin is None or accuracy is None:
        return None
    share = 2 / (1 + math.exp(min(margin.last, 700.0)))  # of the gradient at a margin of 0
    if share > SATURATED or accuracy.last < 0.99:
        return None
    fall = ""
    if norm is not None:
        if norm.last > norm.first / 2:
            return None
        fall = f", gradient norm {norm.first:.3g} before and {norm.last:.3g} now"
    return Verdict(
        "saturated rewards",
        f"margin {margin.last:.1f}, accuracy {accuracy.last:.2f}{fall}: a logistic pair loss has "
        f"{share:.2%} of its first gradient left, and what still moves is noise. Usually helps: "
        "fewer epochs, a smaller `beta`, harder pairs",
    )


def _endings(logs: Sequence[Mapping[str, float]]) -> Verdict | None:
    trend = _trend(logs, "logps_last_token/chosen")
    if trend is None or trend.moved(END_SHIFT) >= 0:
        return None
    factor = math.exp(trend.last - trend.first)
    return Verdict(
        "responses no longer end",
        f"the token that ends chosen responses has {trend.last:.2f} nats, {trend.first:.2f} at the "
        f"start, {factor:.2g} times the probability: answers grow longer or never stop. Usually "
        "helps: a lower learning rate, a likelihood term (`cpo`), length normalisation (`simpo`), "
        "and `truncation_mode: drop`, which cuts no ending off",
    )


def _shift(logs: Sequence[Mapping[str, float]], side: str) -> float | None:
    """By how many nats per token a side has moved; None where the logs do not tell."""
    ratio = _trend(logs, f"logratios_per_token/{side}")
    if ratio is not None:
        return ratio._replace(first=0.0).moved(SHIFT)  # it is relative to the start already
    trend = _trend(logs, f"logps_per_token/{side}")
    return None if trend is None else trend.moved(SHIFT)


def _trend(logs: Sequence[Mapping[str, float]], name: str) -> _Trend | None:
    values = [entry[name] for entry in logs if name in entry]
    if len(values) < 2 * WINDOW or not all(map(math.isfinite, values[:WINDOW] + values[-WINDOW:])):
        return None
    (first, first_error), (last, last_error) = map(_mean, (values[:WINDOW], values[-WINDOW:]))
    return _Trend(first, last, math.hypot(first_error, last_error))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(spread / len(values))
