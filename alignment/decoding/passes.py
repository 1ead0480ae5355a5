"""Passes beside the one that generates: other prompts or other models, each with its own cache.

A pass follows a generation token by token. It reads its prompts once and then each new token once;
what it has read stands in its cache.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from alignment.contrasts.args import ARGS


class Pass:
    """What a model says of the next token after prompts of its own and the tokens generated so far.

    Rows belong together: row b of the generation follows row b here. A beam search has several rows
    for each prompt; they are followed where they go. A generation that begins anew, with the same
    number of tokens as before, begins anew here too.

    Args:
        model: A causal language model of transformers, in eval mode; it may be the one that
            generates, whose cache is not touched.
        input_ids: (P, T) prompts, padded on the left; other lengths than those of the generation
            are fine.
        attention_mask: (P, T), 0 on padding; all ones where it is None.
        **_: What else a tokenizer gives, which is not read.
    """

    def __init__(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Tensor
    ) -> None:
        self._model = model
        self._prompts = input_ids.to(model.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self._prompt_mask = mask.to(model.device)
        accepted = inspect.signature(model.forward).parameters
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in accepted}
        self._mask = self._prompt_mask
        self._cache: Any = None
        self._followed: Tensor | None = None
        self._start = -1

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits of the next token.

        Args:
            input_ids: (B, t) what the generation holds so far.
            scores: (B, V) of the pass that generates.

        Returns:
            (B, V) in the type of `scores`, and on its device.

        Raises:
            ValueError: The generation does not go on where it was, one token at a time.
        """
        rows = self._follow(input_ids)
        if rows is None:
            logits = self._begin(len(input_ids))
        else:
            self._cache.batch_select_indices(rows)
            logits = self._read(input_ids[:, -1:])
        return logits[:, -1].to(scores)

    def _follow(self, input_ids: Tensor) -> Tensor | None:
        """(B,) which row of the last call each row goes on from; None where all begin anew."""
        before, self._followed = self._followed, input_ids
        if before is None or input_ids.shape[1] == self._start:
            self._start = input_ids.shape[1]
            return None
        if input_ids.shape[1] != before.shape[1] + 1 or len(input_ids) != len(before):
            raise ValueError(
                f"a pass has followed {tuple(before.shape)} tokens and is shown "
                f"{tuple(input_ids.shape)}: it goes on by one token at a time"
            )
        count, past = len(before), input_ids[:, :-1]
        rows = torch.arange(count, device=input_ids.device)
        if not torch.equal(past, before):
            prompts = rows // (count // len(self._prompts))
            same = (past[:, None] == before[None]).all(-1) & (prompts[:, None] == prompts[None])
            if not same.any(1).all():
                raise ValueError("a pass is shown tokens that it has not followed")
            rows = same.int().argmax(1)
        return rows.to(self._model.device)

    def _begin(self, rows: int) -> Tensor:
        """Reads the prompts, each as often as the generation has rows for it."""
        if rows % len(self._prompts):
            raise ValueError(f"{rows} rows are generated and {len(self._prompts)} prompts given")
        each = rows // len(self._prompts)
        self._cache = None
        self._mask = self._prompt_mask.new_zeros(rows, 0)
        mask = self._prompt_mask.repeat_interleave(each, 0)
        return self._read(self._prompts.repeat_interleave(each, 0), mask)

    def _read(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 1, V) logits after further tokens (B, n), which the cache holds from now on."""
        tokens = tokens.to(self._model.device)
        new = torch.ones_like(tokens) if mask is None else mask
        self._mask = torch.cat([self._mask, new], 1)
        options: dict[str, Any] = {
            "position_ids": (self._mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
            "logits_to_keep": 1,
        }
        read = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **{name: options[name] for name in self._takes},
        )
        self._cache = read.past_key_values
        logits: Tensor = read.logits
        return logits


class RewardPass(Pass):
    """What a reward model gives the text that each candidate for the next token would make.

    The candidates of a row are read beside each other, from copies of the row's cache; the copy of
    the one that was chosen goes on. So no token is read twice.

    A row whose next token is none of its candidates has ended: `generate` pads it, and what it gets
    from then on has no meaning. What forces tokens upon a row must not come after this pass.

    Args:
        model: A sequence classifier of transformers with one output, whose tokenizer is that of
            the model that generates.
        contrast: Names the candidates.
        input_ids: As for `Pass`.
        attention_mask: As for `Pass`.
        **_: As for `Pass`.
    """

    def __init__(
        self,
        model: Any,
        contrast: ARGS,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **_: Tensor,
    ) -> None:
        super().__init__(model, input_ids, attention_mask)
        self._contrast = contrast
        self._candidates = input_ids.new_zeros(0, 0)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) rewards of the candidates, 0 elsewhere; as `Pass` otherwise."""
        rows = self._follow(input_ids)
        if rows is None:
            self._begin(len(input_ids))
        else:
            chosen = input_ids[:, -1:].to(self._model.device)
            place = (self._candidates[rows] == chosen).int().argmax(1)
            picked = rows * self._candidates.shape[1] + place
            self._cache.batch_select_indices(picked)
            self._mask = self._mask[picked]
        candidates = self._contrast.candidates(scores)  # (B, k)
        count = candidates.shape[1]
        self._candidates = candidates.to(self._model.device)
        self._cache.batch_repeat_interleave(count)
        self._mask = self._mask.repeat_interleave(count, 0)
        rewards = self._read(self._candidates.reshape(-1, 1))[:, 0].view(-1, count)
        return torch.zeros_like(scores).scatter(1, candidates, rewards.to(scores))
