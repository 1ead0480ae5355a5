"""What puts a contrast into `model.generate`: processors of logits, for anyone to use.

    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    contrast = ContrastProcessor(OBrienLewis(beta=0.5), Pass(amateur, **inputs))
    expert.generate(**inputs, logits_processor=LogitsProcessorList([contrast]))

A contrast comes before all that shapes the draw: temperature, top-k, top-p.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import torch
from torch import Tensor
from transformers import LogitsProcessor

from alignment.contrasts.base import NEVER, Contrast
from alignment.decoding.passes import Pass


class ContrastProcessor(LogitsProcessor):  # type: ignore[misc]  # an Any to mypy
    """Replaces the logits of a step by the scores of a contrast.

    Args:
        contrast: The formula.
        second: The pass that it sets against the one that generates.
        beams: For beam search, where `generate` hands on log-probs: the second pass gives log-probs
            too, so that scores compare across beams.
    """

    def __init__(self, contrast: Contrast, second: Pass, *, beams: bool = False) -> None:
        self._contrast = contrast
        self._second = second
        self._beams = beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores of the next token.

        Of models whose heads are padded to different widths only the common tokens can be chosen.
        """
        second = self._second(input_ids, scores)
        if self._beams:
            second = second.log_softmax(-1)
        width = min(scores.shape[1], second.shape[1])
        first = scores[:, :width]
        found = settle_ties(self._contrast(first, second[:, :width]), first)
        return torch.nn.functional.pad(found, (0, scores.shape[1] - width), value=NEVER)


def settle_ties(scores: Tensor, first: Tensor) -> Tensor:
    """Lets the first pass decide in rows where all tokens that may be chosen score the same.

    There a contrast says nothing, as that of a model with itself may.

    Args:
        scores: (B, V) of a contrast, minus infinity where a token may not be chosen.
        first: (B, V) logits of the first pass.
    """
    kept = scores > NEVER
    tied = scores.masked_fill(~kept, -NEVER).amin(1) == scores.amax(1)
    return torch.where(tied[:, None], first.masked_fill(~kept, NEVER), scores)


class DivergenceMeter(LogitsProcessor):  # type: ignore[misc]  # an Any to mypy
    """Measures how far a generation goes from a start, step by step, and changes nothing.

    Placed before temperature and filters it compares what is decoded from at temperature 1.

    Args:
        start: The pass to compare with.
        ends: Tokens after which a row has ended.

    Attributes:
        total: (B,) nats: the sum of KL(decoded from || start) over the steps of a row.
        seconds: Time that the measuring has taken.
    """

    def __init__(self, start: Pass, ends: Collection[int]) -> None:
        self._start = start
        self._ends = torch.tensor(sorted(ends))
        self._going: Tensor | None = None
        self.total = torch.zeros(0)
        self.seconds = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) the scores as they are."""
        _synchronise(scores)
        began = time.perf_counter()
        start = self._start(input_ids, scores)
        width = min(scores.shape[1], start.shape[1])
        step = kl(scores[:, :width], start[:, :width])
        if self._going is None:
            self._going = torch.ones_like(step, dtype=torch.bool)
            self.total = torch.zeros_like(step)
        else:
            self._going &= ~torch.isin(input_ids[:, -1], self._ends.to(input_ids.device))
        self.total += torch.where(self._going, step, 0.0)
        _synchronise(scores)
        self.seconds += time.perf_counter() - began
        return scores


def kl(scores: Tensor, start: Tensor) -> Tensor:
    """(B,) KL(softmax(scores) || softmax(start)), nats; tokens that cannot be chosen add nothing.

    Args:
        scores: (B, V), minus infinity where a token cannot be chosen.
        start: (B, V) logits.
    """
    logps = scores.log_softmax(-1)
    ratios = (logps - start.log_softmax(-1)).masked_fill(logps == NEVER, 0.0)
    return (logps.exp() * ratios).sum(-1).clamp(min=0.0)


def _synchronise(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize()
