"""Texts as vectors: the mean hidden state of a model's last layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]


def embed(
    texts: Sequence[str], model: str | Path, device: str | None = None, batch_size: int = 32
) -> Vectors:
    """Embeds texts, each apart from the others but for rounding.

    Args:
        texts: n texts; an empty one becomes zeros.
        model: A folder or hub id of any model that `AutoModel` of transformers loads.
        device: Where it runs; by default an accelerator where there is one.
        batch_size: Texts at a time.

    Returns:
        (n, H) means over the tokens of each text, float64.

    Raises:
        UserError: There is no such model.
    """
    import torch

    from alignment.llm.model import load_pretrained

    loaded = load_pretrained(str(model), "AutoModel", device)
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "right"  # on the left it would move positions that are absolute
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            [_readable(text) for text in texts[start : start + batch_size]],
            padding=True,
            truncation=loaded.longest is not None,
            max_length=loaded.longest,
            return_tensors="pt",
        ).to(loaded.device)
        with torch.inference_mode():
            hidden = loaded.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state.double()
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden)
        found.append(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
    vectors: Vectors = np.concatenate(found) if found else np.zeros((0, 0))
    vectors[[not text for text in texts]] = 0.0
    return vectors


def _readable(text: str) -> str:
    """A text with at least a token, which a mean needs, and without halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8") or " "


def nearest(query: Vectors, known: Vectors, count: int) -> list[int]:
    """The indices of the vectors most like one by cosine, the most like first.

    Args:
        query: (H,).
        known: (n, H).
        count: How many, n at most.
    """
    norms = np.linalg.norm(known, axis=1) * np.linalg.norm(query)
    alike = known @ query / np.maximum(norms, 1e-12)
    return [int(index) for index in np.argsort(-alike, kind="stable")[:count]]
