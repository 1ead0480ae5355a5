"""Groups of token ids to measure on: real answers, and lengths like those of published sets."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from alignment.core.groups import (
    CHOSEN,
    NEITHER,
    REJECTED,
    RowError,
    as_chat,
    binarise,
    group_from_row,
)
from alignment.core.packing import TokenGroup
from alignment.core.rendering import Renderer
from alignment.data import GroupDataset
from tests.tiny import tiny_tokenizer

MAX_LENGTH = 1024
"""Longest prompt plus response in tokens, the default of both trainers."""

TOKENS = 16_000
"""Token ids in use; a larger vocabulary only enlarges embedding and head."""

REAL = "alpaca_eval"


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of lengths in tokens.

    Attributes:
        median: Half of the lengths lie below.
        spread: Standard deviation of the logarithm; 0 makes all lengths equal.
        least: Shorter ones are lengthened.
        most: Longer ones are cut.
    """

    median: int
    spread: float
    least: int = 4
    most: int = 768

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Some lengths."""
        drawn = self.median * np.exp(self.spread * rng.standard_normal(count))
        return np.clip(drawn.round(), self.least, self.most).astype(int).tolist()


@dataclass(frozen=True)
class Preset:
    """Lengths of one kind of data.

    Attributes:
        prompt: Of the prompts, at most 256 tokens less than `MAX_LENGTH`.
        response: Of the responses.
        source: Where the numbers come from.
    """

    prompt: Lengths
    response: Lengths
    source: str


PRESETS = {
    "ultrafeedback": Preset(
        Lengths(90, 0.9, most=600),
        Lengths(260, 0.7, most=424),
        "approximate: pairs of about 400 tokens, prompts a third of a response",
    ),
    "helpsteer": Preset(
        Lengths(360, 0.8, most=700),
        Lengths(140, 0.6, most=324),
        "approximate: long contexts, short answers",
    ),
    "hh": Preset(
        Lengths(110, 0.8, most=600),
        Lengths(55, 0.8, most=424),
        "approximate: dialogues of a few turns, one short last turn",
    ),
    "summarisation": Preset(
        Lengths(370, 0.35, most=700),
        Lengths(35, 0.4, most=324),
        "approximate: posts of several hundred tokens, one or two sentences of summary",
    ),
    "512x128": Preset(Lengths(512, 0.0), Lengths(128, 0.0), "by definition"),
}
"""Orders of magnitude, not measurements: the parameters were chosen by hand."""


def shared_file() -> Path | None:
    """The file of real answers with rewards, where it is present."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("ALIGNMENT_SHARED", root.parent / "shared"))
    name = Path("rewards") / "alpaca_eval_k8.jsonl.gz"
    found = [path for path in (folder / name, folder / "data" / name) if path.is_file()]
    return found[0] if found else None


def groups_of(name: str, responses: int, seed: int = 0) -> list[TokenGroup]:
    """A pool of groups: two responses are a pair, more have rewards.

    Args:
        name: `alpaca_eval` or a key of `PRESETS`.
        responses: Responses of a group.
        seed: Of drawn lengths.
    """
    if name == REAL:
        file = shared_file()
        if file is None:
            raise FileNotFoundError("the file of real answers is not there")
        return real_groups(file, responses)
    return drawn_groups(PRESETS[name], responses, 512, seed)


def real_groups(file: Path, responses: int) -> list[TokenGroup]:
    """Groups of real answers within `MAX_LENGTH`; pairs are the best answer against the worst.

    The tokenizer is trained on the same text, so that lengths are those of real tokens.
    """
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = (str(answer["text"]) for row in rows for answer in row["responses"])
    tokenizer = tiny_tokenizer([*(row["prompt"] for row in rows), *texts], vocab_size=TOKENS)
    render = Renderer(tokenizer, MAX_LENGTH)
    groups = []
    for number, row in enumerate(rows):
        try:
            if responses == 2:
                group, _ = binarise(group_from_row(row), seed=0)
            else:
                group = group_from_row({**row, "responses": row["responses"][:responses]})
            groups.append(render(as_chat(group), f"{file.name}:{number + 1}").group)
        except RowError:
            continue
    return groups


def drawn_groups(preset: Preset, responses: int, count: int, seed: int) -> list[TokenGroup]:
    """Groups of random ids with lengths of a preset."""
    rng = np.random.default_rng(seed)
    groups = []
    for number, length in enumerate(preset.prompt.draw(rng, count)):
        lengths = preset.response.draw(rng, responses)
        ids = [rng.integers(8, TOKENS, size).tolist() for size in (length, *lengths)]
        pair = responses == 2
        groups.append(
            TokenGroup.of(
                [ids[0]] * responses,
                ids[1:],
                role=[CHOSEN, REJECTED] if pair else [NEITHER] * responses,
                reward=None if pair else rng.random(responses).tolist(),
                origin=f"drawn[{number}]",
            )
        )
    return groups


def longest_row(group: TokenGroup) -> int:
    """Tokens of the longest prompt plus response."""
    branches = zip(group.contexts, group.responses, strict=True)
    return len(group.prefix) + max(len(context) + len(response) for context, response in branches)


def unique_tokens(groups: Sequence[TokenGroup]) -> int:
    """Positions that have to be computed: every prompt once, no last token of a response."""
    return sum(group.lengths()[0] for group in groups)


def padded_tokens(groups: Sequence[TokenGroup]) -> int:
    """Positions of one padded row per response in one batch."""
    rows = sum(len(group.responses) for group in groups)
    return rows * max(map(longest_row, groups))


def sorted_batches(pool: Sequence[TokenGroup], batch: int, steps: int) -> list[list[TokenGroup]]:
    """Batches as the whole pool sorted by length has them, evenly spaced from short to long."""
    if len(pool) < batch * steps:
        raise ValueError(f"{len(pool)} groups do not make {steps} batches of {batch}: ask for less")
    ordered = sorted(pool, key=longest_row)
    last = len(ordered) - batch
    starts = [round((step + 0.5) / steps * len(ordered) - batch / 2) for step in range(steps)]
    return [ordered[max(0, min(s, last)) :][:batch] for s in starts]


def as_dataset(groups: Sequence[TokenGroup]) -> GroupDataset:
    """Groups as the trainer reads prepared data."""
    records = []
    for group in groups:
        shared, plain = group.lengths()
        records.append(
            {
                "prefix": list(group.prefix),
                "contexts": [list(part) for part in group.contexts],
                "responses": [list(part) for part in group.responses],
                "role": list(group.role),
                "reward": group.reward,
                "weight": [1.0] * len(group.responses),
                "twin": None,
                "origin": group.origin,
                "notices": [],
                "shared_length": shared,
                "plain_length": plain,
                "size": len(group.responses),
            }
        )
    rejects = datasets.Dataset.from_dict({"origin": [], "reason": [], "message": [], "row": []})
    return GroupDataset(datasets.Dataset.from_list(records), rejects)
