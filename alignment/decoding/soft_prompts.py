"""Pairs of soft prompts: vectors before a prompt in place of words, one for, one against.

A vector of a soft prompt is a token beyond the vocabulary: once `install` has been called, the
model's embedding knows its id, so that it stands in rows of ids like any other token, and padding,
masks and caches need to know nothing of it. It can be read, never written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignment.cli import UserError

WEIGHTS, RECORD = "soft_prompts.safetensors", "soft_prompts.json"


class Ids(NamedTuple):
    """The ids of a pair of soft prompts.

    Attributes:
        safe: Of the one for what is wanted.
        adversarial: Of the one for its opposite.
    """

    safe: list[int]
    adversarial: list[int]


@dataclass(frozen=True)
class Record:
    """What a pair of soft prompts was tuned on.

    Attributes:
        fingerprint: Checksum of the model it belongs to.
        model: That model's name.
        tokens: Vectors of each prompt.
        settings: How it was tuned.
    """

    fingerprint: str
    model: str
    tokens: int
    settings: dict[str, Any]


class SoftEmbedding(nn.Module):
    """An embedding that knows some ids beyond its vocabulary.

    Args:
        base: The model's embedding.
        vectors: (n, H) vectors of the ids from the size of the vocabulary on.
    """

    def __init__(self, base: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.base = base
        self.vectors = nn.Parameter(vectors)
        self.first = len(base.weight)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T, H) vectors of ids (B, T)."""
        known = ids < self.first
        words: Tensor = self.base(ids.where(known, 0))
        soft = nn.functional.embedding((ids - self.first).clamp(min=0), self.vectors)
        return torch.where(known[..., None], words, soft.to(words.dtype))


def install(model: Any, vectors: Tensor) -> tuple[SoftEmbedding, Ids]:
    """Teaches a model's embedding the vectors of both prompts.

    Args:
        model: A causal language model of transformers.
        vectors: (2, n, H) those of the safe and of the adversarial prompt.
    """
    base = model.get_input_embeddings()
    both = vectors.flatten(0, 1).to(base.weight.device)
    embedding = SoftEmbedding(base, both)
    model.set_input_embeddings(embedding)
    count, first = vectors.shape[1], embedding.first
    return embedding, Ids(
        list(range(first, first + count)), list(range(first + count, first + 2 * count))
    )


def first_vectors(model: Any, texts: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """(2, n, H) float32 vectors to start from: those of two texts, repeated to the length.

    Args:
        model: Whose embedding is looked up.
        texts: Ids of a text for each prompt.
        tokens: n.
    """
    device = model.get_input_embeddings().weight.device
    rows = [[ids[place % len(ids)] for place in range(tokens)] for ids in texts]
    with torch.no_grad():
        vectors: Tensor = model.get_input_embeddings()(torch.tensor(rows, device=device))
    return vectors.detach().float().clone()


def save(folder: Path, vectors: Tensor, record: Record) -> None:
    """Writes a pair of soft prompts (2, n, H)."""
    folder.mkdir(parents=True, exist_ok=True)
    safe, adversarial = vectors.detach().float().cpu().contiguous().unbind(0)
    named = {"safe": safe.contiguous(), "adversarial": adversarial.contiguous()}
    save_file(named, folder / WEIGHTS)
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def load(folder: Path, fingerprint: str) -> Tensor:
    """(2, n, H) a pair of soft prompts.

    Args:
        folder: As `save` writes it.
        fingerprint: Checksum of the model that is to read them.

    Raises:
        UserError: There are none, or they were tuned for another model.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        named = load_file(folder / WEIGHTS)
        vectors = torch.stack([named["safe"], named["adversarial"]])
        model, expected = record["model"], record["fingerprint"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no soft prompts ({error}); `alignment soft_prompts` makes them"
        ) from None
    if expected != fingerprint:
        raise UserError(
            f"the soft prompts in {folder} were tuned for another model ({model}, {expected}) than "
            f"this one ({fingerprint}); tune a pair for it by `alignment soft_prompts`"
        )
    return vectors
