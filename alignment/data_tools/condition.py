"""Put a control token before every scored segment, for conditional training.

A segment whose score is at most the threshold gets the aligned token, any other the misaligned
one, and a fraction gets none, so that the model can do without. The control token belongs to
its segment and is learnt with it. Ask the trained model to go on after the aligned token.

Paper: Pretraining Language Models with Human Preferences, arXiv 2302.08582.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.cli import parse
from alignment.core.groups import Content, Group, Response, Segment, scored_segments, text_of
from alignment.data_tools.base import group_of
from alignment.llm.rows import Reject, Row
from data_builders.base import DataOptions, build_dataset


@dataclass(frozen=True)
class Controls:
    """Which control token a segment gets.

    Attributes:
        aligned: Before segments that score well.
        misaligned: Before the others.
        threshold: Highest score of the aligned.
        drop_fraction: Share of segments that get none.
    """

    aligned: str
    misaligned: str
    threshold: float
    drop_fraction: float


@dataclass(kw_only=True)
class Options(DataOptions):
    """Options of `alignment data condition`."""

    threshold: float = field(metadata={"help": "highest score of an aligned segment"})
    aligned: str = field(default="<|aligned|>", metadata={"help": "token of aligned segments"})
    misaligned: str = field(default="<|misaligned|>", metadata={"help": "token of the others"})
    drop_fraction: float = field(
        default=0.01, metadata={"help": "share of segments without a token"}
    )
    seed: int = field(default=0, metadata={"help": "decides which segments go without"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_fraction <= 1:
            raise ValueError(f"`drop_fraction` is {self.drop_fraction}; it must be between 0 and 1")

    @property
    def controls(self) -> Controls:
        """The rule that the options state."""
        return Controls(self.aligned, self.misaligned, self.threshold, self.drop_fraction)


def conditioned(parts: Sequence[tuple[str, float]], controls: Controls, seed: str) -> list[str]:
    """The segments of a text, each behind its control token.

    Args:
        parts: Text and score of each segment.
        controls: Which token a segment gets.
        seed: Decides, together with the place of a segment, whether it goes without.
    """
    texts = []
    for place, (text, score) in enumerate(parts):
        token = controls.aligned if score <= controls.threshold else controls.misaligned
        dropped = random.Random(f"{seed}\0{place}").random() < controls.drop_fraction
        texts.append(text if dropped else token + text)
    return texts


def condition(group: Group, controls: Controls, seed: int) -> Group:
    """A group whose responses carry control tokens; their segments follow.

    Raises:
        Reject: `lacks_scores`, where a response has neither segments nor a reward.
    """
    responses = tuple(
        _response(response, controls, f"{seed}\0{text_of(group.prompt)}\0{index}")
        for index, response in enumerate(group.responses)
    )
    settings = {"threshold": controls.threshold, "drop_fraction": controls.drop_fraction}
    return replace(group, responses=responses, meta={**group.meta, "condition": settings})


def _response(response: Response, controls: Controls, seed: str) -> Response:
    segments, text = scored_segments(response), text_of(response.content)
    if segments is None:
        raise Reject(
            "lacks_scores", "the row needs `segments` with scores, or a `reward` for the response"
        )
    parts = [(text[part.start : part.end], part.score) for part in segments]
    place, moved = 0, []
    texts = conditioned(parts, controls, seed)
    for own, (_, score) in zip(texts, parts, strict=True):
        moved.append(Segment(place, place + len(own), score))
        place += len(own)
    content = _like(response.content, "".join(texts))
    return replace(response, content=content, segments=tuple(moved), spans=None)


def _like(content: Content, text: str) -> Content:
    """A text in the form of the response it stands for."""
    return text if isinstance(content, str) else [{**content[0], "content": text}]


def main(argv: list[str]) -> None:
    """`alignment data condition`."""
    options = parse(Options, argv, "alignment data condition", __doc__)

    async def build(row: Row, *_: Any) -> Group:
        return condition(group_of(row), options.controls, options.seed)

    build_dataset(options, build)
