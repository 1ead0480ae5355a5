"""Replace rewards by their quantiles within a prompt, transformed for best-of-n or worst-of-n.

The quantile of a response is the share of the other responses to its prompt that have a lower
reward, ties counted half: what a reward model's scale says about it, freed of that scale. A model
that will be used with best-of-n sampling gains most where its best responses get better, so high
quantiles are spread apart; for worst-of-n, the low ones are.

After: InfAlign: Inference-aware Language Model Alignment, arXiv 2412.19792. Formulas and their
scale are our form of its calibration and transforms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from alignment.cli import parse
from alignment.core.groups import Group
from alignment.data_tools.base import group_of
from alignment.llm.rows import Reject, Row
from data_builders.base import DataOptions, build_dataset

Transform = Literal["none", "best_of_n", "worst_of_n"]


@dataclass(kw_only=True)
class Options(DataOptions):
    """Options of `alignment data relabel`."""

    transform: Transform = field(
        default="none", metadata={"help": "what the quantiles are transformed for"}
    )
    strength: float = field(
        default=10.0, metadata={"help": "t in e^(t u); the larger, the more the ends count"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength < math.inf:
            raise ValueError(f"`strength` is {self.strength}; it must be a number above 0")


def quantiles(rewards: Sequence[float]) -> list[float]:
    """The share of the others below each reward, ties counted half.

    Args:
        rewards: At least two.

    Returns:
        As many numbers in [0, 1].
    """
    others = len(rewards) - 1
    return [
        sum((other < own) + (other == own) / 2 for other in rewards) / others - 0.5 / others
        for own in rewards
    ]


def transformed(quantile: float, transform: Transform, strength: float) -> float:
    """The label of a quantile u, scaled to run from 0 at u = 0 to 1 at u = 1.

    Formula: e^(t u) for best-of-n, -e^(-t u) for worst-of-n, u itself for none, each minus its
    value at 0 and over its range, which changes no ranking and keeps temperatures comparable. The
    numbers of a great strength are equal, to a float, where they lie away from the end that counts.
    """
    if transform == "none":
        return quantile
    label = math.expm1(-strength * quantile) / math.expm1(-strength)
    if transform == "worst_of_n":
        return label
    return label * math.exp(strength * (quantile - 1))  # (e^(t u) - 1) / (e^t - 1), without e^t


def relabel(group: Group, transform: Transform, strength: float) -> Group:
    """A group with new rewards; the old ones stay in `meta`.

    Raises:
        Reject: `no_reward`, where there are not two responses with rewards.
    """
    rewards = [response.reward for response in group.responses]
    known = [reward for reward in rewards if reward is not None]
    if len(known) < max(2, len(rewards)):
        raise Reject("no_reward", "relabelling needs at least two responses, all with rewards")
    labels = [transformed(u, transform, strength) for u in quantiles(known)]
    settings: dict[str, Any] = {"transform": transform, "rewards": known}
    if transform != "none":
        settings["strength"] = strength
    responses = tuple(
        replace(response, reward=label)
        for response, label in zip(group.responses, labels, strict=True)
    )
    return replace(group, responses=responses, meta={**group.meta, "relabel": settings})


def main(argv: list[str]) -> None:
    """`alignment data relabel`."""
    options = parse(Options, argv, "alignment data relabel", __doc__)

    async def build(row: Row, *_: Any) -> Group:
        return relabel(group_of(row), options.transform, options.strength)

    build_dataset(options, build)
